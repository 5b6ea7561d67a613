"""Steps that pad to buckets, in a real Triton: torch hosts the engines on the CPU, and padding changes no score."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from resrank.export.export_options import ExportOptions
from resrank.export.exporter import export_checkpoint
from resrank.export.manifest import Runtime, read_manifest
from resrank.export.profiles import RerankerProfile
from resrank.serving.engines import Precision
from resrank.stack.triton_process import TritonProcess
from support.tiny_checkpoint import make_tiny_checkpoint
from support.triton_requests import rerank_inputs, texts, unit_vectors

from .conftest import Reference, Served

QUERY = "Which river flows through the capital of France?"
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("buckets")
    make_tiny_checkpoint(folder / "checkpoint", query_residual=True)
    options = ExportOptions(
        runtime=Runtime.TORCH,
        precision=Precision.FP32,
        reranker_profiles=(RerankerProfile.parse("1:4:8x16:64:120x1:8:12"),),
    )
    export_checkpoint(folder / "checkpoint", folder / "repository", options)
    reference = Reference(folder / "checkpoint")
    with (
        TritonProcess(folder / "repository") as triton,
        triton_grpc.InferenceServerClient(triton.grpc_address) as client,
    ):
        yield Served(
            folder / "checkpoint",
            folder / "repository",
            reference,
            triton.grpc_address,
            client,
            triton.metrics_address,
        )


@pytest.mark.parametrize("count", [1, 10, 11, 12])
def test_scores_are_the_references(padded: Served, count: int) -> None:
    candidates = unit_vectors(count, padded.spec.encoder.embedding_dim, seed=count)
    scores = padded.client.infer("rerank", rerank_inputs(QUERY, candidates)).as_numpy("SCORES")[0]
    np.testing.assert_allclose(scores, padded.reference.rerank(QUERY, candidates), atol=TOLERANCE)


def test_what_reaches_the_reranker_has_the_buckets_shapes(padded: Served) -> None:
    buckets = read_manifest(padded.repository).buckets
    assert buckets is not None
    assert buckets.candidates == (10, 12)
    dim = padded.spec.encoder.embedding_dim
    answer = padded.client.infer("rerank_prompt", rerank_inputs(QUERY, unit_vectors(3, dim)))
    assert answer.as_numpy("INPUT_IDS").shape[1] in buckets.sequence
    assert answer.as_numpy("CANDIDATES").shape == (1, 10, dim)
    assert answer.as_numpy("CANDIDATE_COUNT").tolist() == [[3]]


def test_unequal_requests_at_the_same_time_get_what_they_get_alone(padded: Served) -> None:
    dim, words = padded.spec.encoder.embedding_dim, QUERY.split()
    cases = [(" ".join(words[: 1 + place % len(words)]), unit_vectors(1 + place % 12, dim)) for place in range(24)]

    def scores(case: tuple[str, np.ndarray]) -> np.ndarray:
        return padded.client.infer("rerank", rerank_inputs(*case)).as_numpy("SCORES")[0]

    with ThreadPoolExecutor(12) as threads:
        together = list(threads.map(scores, cases))
    for (query, candidates), found in zip(cases, together, strict=True):
        np.testing.assert_allclose(found, padded.reference.rerank(query, candidates), atol=TOLERANCE)


def test_embeddings_are_the_references(padded: Served) -> None:
    passages = ("The moon.", "In 1969 two astronauts walked on the moon while a third stayed in orbit.")
    embeddings = padded.client.infer("embed_passage", [texts("TEXT", passages)]).as_numpy("EMBEDDING")
    np.testing.assert_allclose(embeddings, [padded.reference.encode(text) for text in passages], atol=TOLERANCE)


def test_more_candidates_than_the_longest_bucket_are_refused(padded: Served) -> None:
    candidates = unit_vectors(13, padded.spec.encoder.embedding_dim)
    with pytest.raises(InferenceServerException, match=r"too many candidates in one pass \(limit 12, got 13\)"):
        padded.client.infer("rerank", rerank_inputs(QUERY, candidates))
    told = padded.client.get_model_config("rerank").config
    assert told.parameters["max_passages"].string_value == "12"
    assert told.max_batch_size == 8
