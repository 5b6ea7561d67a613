"""Too much at once: who finds a queue full is told so at once, everybody gets an answer, and the server lives on."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from resrank.core.outcomes import Outcome
from resrank.serving.load_metrics import PUBLISH_EVERY_S
from resrank.stack.triton_process import TritonProcess
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
        path = repository / model / "config.pbtxt"
        config = text_format.Parse(path.read_text(), ModelConfig())
        config.parameters["max_queue_size"].string_value = "1"
        path.write_text(text_format.MessageToString(config))
    with TritonProcess(repository) as triton, triton_grpc.InferenceServerClient(triton.grpc_address) as client:
        yield Served(made.checkpoint, repository, made.reference, triton.grpc_address, client, triton.metrics_address)


def all_at_once(served: Served, model: str, inputs: Sequence[Any], times: int) -> list[Any]:
    """Scores or error of each of equal requests sent without waiting."""
    return answers_to(served.client, model, inputs, times, "SCORES")


def answers_to(
    client: Any,
    model: str,
    inputs: Sequence[Any],
    times: int,
    output: str,
    *,
    priority: int = 0,
    timeout: int | None = None,
) -> list[Any]:
    answers: list[Future[Any]] = [Future() for _ in range(times)]
    for answer in answers:

        def receive(result: Any, error: Any, answer: Future[Any] = answer) -> None:
            answer.set_result(error if error is not None else result.as_numpy(output))

        client.async_infer(model, list(inputs), receive, priority=priority, timeout=timeout)
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
    before = narrow.counters()
    for _ in range(2):
        require_shed_and_answered(all_at_once(narrow, "rerank", inputs, 40), expected)
    after = narrow.counters()
    passes, encoded = (after[model].rows - before[model].rows for model in ("reranker", "encoder"))
    assert 0 < encoded <= passes  # no query of what was shed
    assert after["reranker"].failures > before["reranker"].failures
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
    before = narrow.counters()["reranker"]
    with pytest.raises(InferenceServerException, match="Request timeout expired") as raised:
        narrow.client.infer(model, [texts("QUERY", [QUERY]), rest[model]], timeout=1)  # microseconds
    assert raised.value.status() == "StatusCode.UNAVAILABLE"
    after = narrow.counters()["reranker"]
    assert (after.rows, after.pending) == (before.rows, 0)


def test_a_cancelled_call_is_not_computed(narrow: Served) -> None:
    """Of a model that is called directly: within an ensemble a cancellation reaches no step."""

    def outcomes() -> dict[str, float]:
        time.sleep(2 * PUBLISH_EVERY_S)
        return {
            outcome: narrow.metric(f'resrank_requests_total{{model="encoder",outcome="{outcome}"}}')
            for outcome in Outcome
        }

    ids = np.full((ROWS, narrow.spec.encoder.max_passage_tokens), 5)
    busy = [tensor("INPUT_IDS", ids), tensor("ATTENTION_MASK", np.ones_like(ids))]
    brief = [tensor("INPUT_IDS", ids[:1]), tensor("ATTENTION_MASK", np.ones_like(ids[:1]))]
    before = outcomes()
    for _ in range(20):  # the engine may be done before the second call has come, or the cancellation
        ends = [threading.Event(), threading.Event()]
        for inputs, end in zip((busy, brief), ends, strict=True):
            call = narrow.client.async_infer("encoder", inputs, lambda result, error, end=end: end.set())
        call.cancel()
        assert all(end.wait(ANSWERED_S) for end in ends)
        if outcomes()["cancelled"] > before["cancelled"]:
            break
    after = outcomes()
    assert after["cancelled"] > before["cancelled"]
    assert after["failed"] == before["failed"]


def test_bulk_work_is_the_same_work_with_the_least_claim_on_the_processor(narrow: Served) -> None:
    inputs = [texts("TEXT", ["the moon", "a river in the capital"])]
    bulk, waited_for = (
        narrow.client.infer(model, inputs).as_numpy("EMBEDDING") for model in ("embed_bulk", "embed_passage")
    )
    np.testing.assert_allclose(bulk, waited_for, atol=1e-5)
    stubs = [process for process in psutil.process_iter(["cmdline"]) if str(narrow.repository) in cmdline(process)]
    niceness = {
        Path(part).parts[-3]: {os.getpriority(os.PRIO_PROCESS, thread.id) for thread in stub.threads()}
        for stub in stubs
        for part in stub.info["cmdline"]
        if "model.py" in part
    }
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    # The engine's threads; those that take and shed requests have the usual claim.
    assert niceness.pop("bulk_encoder") == {usual, 19}
    assert niceness.pop("reranker") == {usual, min(19, usual + 5)}
    assert set.union(*niceness.values()) == {usual}


def cmdline(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or [])


def test_a_full_bulk_queue_is_nobody_elses(narrow: Served, tmp_path: Path) -> None:
    """As a GPU's encoder has it: the priority of a request travels through the ensemble to the encoder's queue."""
    repository = tmp_path / "repository"
    for model in ("embed_passage", "passage_tokenizer", "encoder"):
        shutil.copytree(narrow.repository / model, repository / model)
    path = repository / "encoder" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), ModelConfig())
    del config.parameters["max_queue_size"]
    batching = config.dynamic_batching
    batching.priority_levels, batching.default_priority_level = 2, 1
    batching.default_queue_policy.max_queue_size = 128
    batching.priority_queue_policy[2].CopyFrom(batching.default_queue_policy)
    batching.priority_queue_policy[2].max_queue_size = 1
    path.write_text(text_format.MessageToString(config))
    with TritonProcess(repository) as triton, triton_grpc.InferenceServerClient(triton.grpc_address) as client:
        inputs = [texts("TEXT", ["a river flows through the capital " * 8] * ROWS)]
        outcomes = {
            priority: [
                "shed" if isinstance(answer, InferenceServerException) else "answered"
                for answer in answers_to(client, "embed_passage", inputs, 30, "EMBEDDING", priority=priority)
            ]
            for priority in (2, 0)  # 0: none is named
        }
        assert set(outcomes[2]) == {"shed", "answered"}
        assert set(outcomes[0]) == {"answered"}
