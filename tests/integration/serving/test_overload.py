"""Too much at once: who finds a queue full is told so at once, everybody gets an answer, and the server lives on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from resrank_stack.triton_process import TritonProcess
from support.triton_requests import rerank_inputs, tensor, texts, unit_vectors

from .conftest import Exported, Served

QUERY = "which river"
ROWS = 64
ANSWERED_S = 60.0


@pytest.fixture(scope="module")
def narrow(exported: Callable[[str], Exported], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The longest chain, with room for one waiting request before each engine."""
    made = exported("query_residual-linear-openvino")
    repository = tmp_path_factory.mktemp("overload") / "repository"
    shutil.copytree(made.repository, repository)
    for model in ("encoder", "reranker"):
        change_config(repository / model / "config.pbtxt", max_queue_size=1)
    with TritonProcess(repository) as triton, triton_grpc.InferenceServerClient(triton.grpc_address) as client:
        yield Served(made.checkpoint, repository, made.reference, triton.grpc_address, client)


def change_config(path: Path, *, max_queue_size: int) -> None:
    config = text_format.Parse(path.read_text(), ModelConfig())
    config.dynamic_batching.default_queue_policy.max_queue_size = max_queue_size
    path.write_text(text_format.MessageToString(config))


def all_at_once(served: Served, model: str, inputs: Sequence[Any], times: int) -> list[Any]:
    """Scores or error of each of equal requests sent without waiting."""
    answers: list[Future[Any]] = [Future() for _ in range(times)]
    for answer in answers:

        def receive(result: Any, error: Any, answer: Future[Any] = answer) -> None:
            answer.set_result(error if error is not None else result.as_numpy("SCORES"))

        served.client.async_infer(model, list(inputs), receive)
    deadline = time.monotonic() + ANSWERED_S
    return [answer.result(timeout=deadline - time.monotonic()) for answer in answers]


def require_shed_and_answered(answers: Sequence[Any], expected: np.ndarray) -> None:
    shed = [answer for answer in answers if isinstance(answer, InferenceServerException)]
    assert shed
    assert {error.status() for error in shed} == {"StatusCode.UNAVAILABLE"}
    assert all("Exceeds maximum queue size" in error.message() for error in shed)
    answered = [answer for answer in answers if not isinstance(answer, InferenceServerException)]
    assert answered
    for scores in answered:
        np.testing.assert_allclose(scores[-1], expected, atol=1e-3)


def test_the_chain_sheds_and_answers_everybody(narrow: Served) -> None:
    candidates = unit_vectors(16, narrow.spec.encoder.embedding_dim)
    rows = np.repeat(candidates[None], ROWS, axis=0)
    inputs = [texts("QUERY", [QUERY] * ROWS), tensor("CANDIDATES", rows)]
    expected = narrow.reference.rerank(QUERY, candidates)
    for _ in range(2):
        require_shed_and_answered(all_at_once(narrow, "rerank", inputs, 40), expected)
    scores = narrow.client.infer("rerank", rerank_inputs(QUERY, candidates)).as_numpy("SCORES")
    np.testing.assert_allclose(scores[0], expected, atol=1e-3)


def test_rerank_text_passes_the_code_of_a_full_queue_on(narrow: Served) -> None:
    passages = [f"the moon {place}" for place in range(8)]
    candidates = np.stack([narrow.reference.encode(text) for text in passages]).astype(np.float16)
    inputs = [texts("QUERY", [QUERY] * 8), texts("PASSAGES", [passages] * 8)]
    answers = all_at_once(narrow, "rerank_text", inputs, 24)
    require_shed_and_answered(answers, narrow.reference.rerank(QUERY, candidates))


@pytest.mark.parametrize("model", ["rerank", "rerank_text"])
def test_a_request_whose_time_is_over_is_not_computed(narrow: Served, model: str) -> None:
    candidates = unit_vectors(4, narrow.spec.encoder.embedding_dim)
    rest = {
        "rerank": tensor("CANDIDATES", candidates[None]),
        "rerank_text": texts("PASSAGES", [["moon", "seine"]]),
    }
    before = reranked(narrow)
    with pytest.raises(InferenceServerException, match="Request timeout expired") as raised:
        narrow.client.infer(model, [texts("QUERY", [QUERY]), rest[model]], timeout=1)  # microseconds
    assert raised.value.status() == "StatusCode.UNAVAILABLE"
    assert reranked(narrow) == before


def reranked(served: Served) -> int:
    (statistics,) = served.client.get_inference_statistics("reranker").model_stats
    return int(statistics.inference_count)
