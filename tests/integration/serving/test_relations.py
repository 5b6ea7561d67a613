"""Rerankers that read relations, behind a real Triton: the reference's scores, and the same bits for any order."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from resrank.core.checkpoint import SlotContent, SlotSpec
from resrank.core.fusion import CosineMap
from resrank.evaluation.scorer import CandidateVectors
from resrank.evaluation.torch_scorer import TorchScorer
from resrank.export.export_options import ExportOptions
from resrank.export.exporter import export_checkpoint
from resrank.serving.engines import EngineKind, Precision
from resrank.stack.triton_process import TritonProcess
from support.tiny_checkpoint import make_tiny_checkpoint
from support.triton_requests import rerank_inputs, tensor, texts, unit_vectors

QUERY = "Which river flows through the capital of France?"
TOLERANCE = 1e-3
MAP = CosineMap(slope=4.84, center=0.72, offset=0.05)
# Slots alone and the score residual alone, as small rerankers have it; and everything that there is.
CHECKPOINTS: dict[str, tuple[dict[str, Any], EngineKind]] = {
    "compact-openvino": (
        {"slots": SlotSpec(content=SlotContent.RELATIONS, neighbors=20), "residual_gate": 0.0, "compact": True},
        EngineKind.OPENVINO,
    ),
    "text-both-onnxruntime": (
        {"slots": SlotSpec(content=SlotContent.BOTH, neighbors=4), "residual_gate": 0.7},
        EngineKind.ONNXRUNTIME,
    ),
}


@dataclass(frozen=True)
class Served:
    """A checkpoint behind Triton, and in torch."""

    client: Any
    reference: TorchScorer

    def rerank(self, query: str, candidates: np.ndarray, **options: object) -> np.ndarray:
        return self.client.infer("rerank", rerank_inputs(query, candidates), **options).as_numpy("SCORES")[0]

    def expected(self, query: str, candidates: np.ndarray) -> np.ndarray:
        (scores,) = self.reference.score([CandidateVectors(query, candidates)])
        return scores


@pytest.fixture(scope="module", params=CHECKPOINTS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    fields, engine = CHECKPOINTS[request.param]
    folder = tmp_path_factory.mktemp("relations")
    make_tiny_checkpoint(folder / "checkpoint", query_residual=True, score_residual=0.3, cosine_map=MAP, **fields)
    options = ExportOptions(cpu_engine=engine, precision=Precision.FP32, threads=1)
    export_checkpoint(folder / "checkpoint", folder / "repository", options)
    with (
        TritonProcess(folder / "repository") as triton,
        triton_grpc.InferenceServerClient(triton.grpc_address) as client,
    ):
        yield Served(client, TorchScorer(folder / "checkpoint"))


@pytest.mark.parametrize("count", [1, 2, 16])
def test_rerank_gives_the_references_scores(served: Served, count: int) -> None:
    candidates = unit_vectors(count, 32, seed=count)
    scores = served.rerank(QUERY, candidates)
    np.testing.assert_allclose(scores, served.expected(QUERY, candidates), atol=TOLERANCE)
    mapped = MAP.apply(candidates.astype(np.float32) @ served.reference.embed_queries([QUERY])[0])
    assert np.abs(scores - mapped).max() > 10 * TOLERANCE, "the reranker adds nothing, so this shows nothing"


def test_shuffled_candidates_get_the_same_bits(served: Served) -> None:
    candidates = unit_vectors(16, 32, seed=5)
    candidates[[3, 9]] = candidates[7]  # equal ones are told apart by nothing
    scores = served.rerank(QUERY, candidates)
    assert len({scores[3], scores[7], scores[9]}) == 1
    for seed in range(5):
        shuffle = np.random.default_rng(seed).permutation(16)
        assert served.rerank(QUERY, candidates[shuffle]).tobytes() == scores[shuffle].tobytes()


def test_rows_of_one_request_are_independent(served: Served) -> None:
    queries = [QUERY, "moon", "a fox and a dog"]
    candidates = np.stack([unit_vectors(4, 32, seed=row) for row in range(3)])
    scores = served.client.infer("rerank", [texts("QUERY", queries), tensor("CANDIDATES", candidates)])
    expected = [served.expected(query, row) for query, row in zip(queries, candidates, strict=True)]
    np.testing.assert_allclose(scores.as_numpy("SCORES"), expected, atol=TOLERANCE)


def test_unequal_requests_at_the_same_time_get_what_they_get_alone(served: Served) -> None:
    words = QUERY.split()
    cases = [
        (" ".join(words[: 1 + index % len(words)]), unit_vectors(1 + 5 * index % 16, 32, seed=index))
        for index in range(32)
    ]
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(lambda case: served.rerank(*case), cases))
    for (query, candidates), scores in zip(cases, together, strict=True):
        np.testing.assert_allclose(scores, served.expected(query, candidates), atol=TOLERANCE)


def test_a_query_longer_than_the_limit_is_refused_or_cut(served: Served) -> None:
    candidates = unit_vectors(4, 32)
    with pytest.raises(InferenceServerException, match="too many tokens"):
        served.rerank("river " * 100, candidates)
    assert served.rerank("river " * 100, candidates, parameters={"truncate": True}).shape == (4,)


def test_texts_are_embedded_and_reranked(served: Served) -> None:
    passages = ["Paris lies on the Seine.", "The moon.", "Two astronauts walked on the moon."]
    candidates = served.reference.embed_passages(passages).astype(np.float16)
    inputs = [texts("QUERY", [QUERY]), texts("PASSAGES", [passages])]
    scores = served.client.infer("rerank_text", inputs).as_numpy("SCORES")[0]
    np.testing.assert_allclose(scores, served.expected(QUERY, candidates), atol=TOLERANCE)
