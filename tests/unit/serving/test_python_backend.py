"""Requests become arrays and outcomes become responses; inside Triton the same is tested with its own module."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import pytest

from resrank.core.errors import (
    DeadlineExceededError,
    InvalidInputError,
    QueueFullError,
    ResRankError,
    RetrievalError,
    ServerFailedError,
    ServerUnavailableError,
)
from resrank.core.names import Model, Tensor
from resrank.core.truncation import Side, Truncation
from resrank.serving.python_backend import PythonBackend, config_parameters, inner_error, version_folder
from resrank.serving.step import Answer, CancelledRequestError, StepRequest


@dataclass
class PbTensor:
    name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.array


@dataclass
class PbError:
    text: str
    code: str

    def message(self) -> str:
        return self.text


class PbErrors:
    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"
    CANCELLED = "CANCELLED"

    def __call__(self, text: str, code: str) -> PbError:
        return PbError(text, code)


@dataclass
class PbResponse:
    output_tensors: list[PbTensor] = field(default_factory=list)
    failure: PbError | None = None

    def has_error(self) -> bool:
        return self.failure is not None

    def error(self) -> PbError | None:
        return self.failure


@dataclass
class PbRequest:
    tensors: dict[str, np.ndarray]
    given: dict[str, object] = field(default_factory=dict)
    timeout_us: int = 0
    wanted: tuple[str, ...] = ("EMBEDDING",)
    sent: list[PbResponse] = field(default_factory=list)
    gone: bool = False

    def requested_output_names(self) -> tuple[str, ...]:
        return self.wanted

    def get_response_sender(self) -> PbRequest:
        return self

    def send(self, response: PbResponse, flags: int) -> None:
        assert flags == PbUtils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self.sent.append(response)

    def parameters(self) -> str:
        return json.dumps(self.given)

    def timeout(self) -> int:
        return self.timeout_us

    def is_cancelled(self) -> bool:
        return self.gone


class PbUtils:
    """The part of ``triton_python_backend_utils`` that is used; it cannot be imported outside Triton."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    TritonError = PbErrors()
    Tensor = PbTensor

    def __init__(self, inner: PbResponse | None = None) -> None:
        self.logged: list[str] = []
        self.sent: list[dict[str, Any]] = []
        self.inner = inner
        self.Logger = self

    def log_error(self, text: str) -> None:
        self.logged.append(text)

    def InferenceResponse(
        self, output_tensors: list[PbTensor] | None = None, error: PbError | None = None
    ) -> PbResponse:
        return PbResponse(output_tensors or [], error)

    def get_input_tensor_by_name(self, request: PbRequest, name: str) -> PbTensor:
        return PbTensor(name, request.tensors[name])

    def get_output_tensor_by_name(self, response: PbResponse, name: str) -> PbTensor:
        (found,) = (tensor for tensor in response.output_tensors if tensor.name == name)
        return found

    def InferenceRequest(self, **fields: Any) -> PbUtils:
        self.sent.append(fields)
        return self

    async def async_exec(self) -> PbResponse:
        assert self.inner is not None
        return self.inner


CONFIG = {
    "input": [{"name": "TEXT"}],
    "parameters": {"max_passages": {"string_value": "7"}},
}
ARGS = {
    "model_name": "query_tokenizer",
    "model_repository": "/models/query_tokenizer",
    "model_version": "1",
    "model_config": json.dumps(CONFIG),
}


class Doubling:
    """Doubles, or raises what stands in ``failures`` at the request's place."""

    def __init__(self, failures: dict[int, Exception] | None = None, breaks: bool = False) -> None:
        self.failures = failures or {}
        self.breaks = breaks
        self.seen: list[StepRequest] = []

    def run(self, requests: Sequence[StepRequest]) -> list[Answer]:
        self.seen += requests
        if self.breaks:
            raise ZeroDivisionError("oops")
        outcomes: list[Answer] = []
        for place, request in enumerate(requests):
            doubled = {Tensor.EMBEDDING: 2 * request.inputs[Tensor.TEXT]}
            outcomes.append(self.failures.get(place, doubled))
        return outcomes


def request(value: int, **fields: Any) -> PbRequest:
    return PbRequest({"TEXT": np.array([[value]])}, **fields)


def test_each_request_gets_its_own_answer() -> None:
    pb = PbUtils()
    step = Doubling({0: InvalidInputError("TEXT", "empty"), 2: QueueFullError("full"), 3: ResRankError("broken")})
    bad_parameter = request(9, given={"truncate": 1})
    responses = PythonBackend(pb, ARGS).execute(step, [request(0), bad_parameter, *map(request, (1, 2, 3, 4))])
    errors = [(response.failure.text, response.failure.code) for response in responses if response.failure]
    assert errors == [
        ("TEXT: empty", "INVALID_ARG"),
        ("truncate: must be a bool request parameter, not 1", "INVALID_ARG"),
        ("full", "UNAVAILABLE"),
        ("broken", "INTERNAL"),
    ]
    answered = [response.output_tensors[0] for response in responses if not response.failure]
    assert [(tensor.name, tensor.array.item()) for tensor in answered] == [("EMBEDDING", 2), ("EMBEDDING", 8)]
    assert pb.logged == []


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (ServerUnavailableError("the sidecar is away"), "the sidecar is away", "UNAVAILABLE"),
        (DeadlineExceededError("too late"), "Request timeout expired: too late", "UNAVAILABLE"),
        (
            DeadlineExceededError("Request timeout expired: of a step"),
            "Request timeout expired: of a step",
            "UNAVAILABLE",
        ),
        (CancelledRequestError("gone"), "gone", "CANCELLED"),
        (RetrievalError("another encoder"), "retrieval: another encoder", "INTERNAL"),
    ],
)
def test_what_becomes_of_a_search_keeps_its_meaning(error: ResRankError, text: str, code: str) -> None:
    answered = request(0)
    PythonBackend(PbUtils(), ARGS).send(answered, error)
    (response,) = answered.sent
    assert response.failure is not None
    assert (response.failure.text, response.failure.code) == (text, code)


def test_outputs_that_nobody_asked_for_are_not_sent() -> None:
    answered = request(0)
    outputs = {Tensor.EMBEDDING: np.ones(1), Tensor.SCORES: np.zeros(1)}
    PythonBackend(PbUtils(), ARGS).send(answered, outputs)
    (response,) = answered.sent
    assert [tensor.name for tensor in response.output_tensors] == ["EMBEDDING"]


def test_requests_beyond_the_queues_bound_are_shed() -> None:
    bounded = {**CONFIG, "parameters": {"max_queue_size": {"string_value": "3"}}}
    backend = PythonBackend(PbUtils(), {**ARGS, "model_config": json.dumps(bounded)})
    backend.refuse_above_queue_bound(3)
    with pytest.raises(QueueFullError, match="Exceeds maximum queue size of query_tokenizer: 3 requests"):
        backend.refuse_above_queue_bound(4)
    PythonBackend(PbUtils(), ARGS).refuse_above_queue_bound(1000)


def test_a_bug_is_logged_with_its_place_and_answered_as_internal() -> None:
    pb = PbUtils()
    responses = PythonBackend(pb, ARGS).execute(Doubling(breaks=True), [request(0), request(1)])
    assert [response.failure.code for response in responses] == ["INTERNAL", "INTERNAL"]
    assert "query_tokenizer" in responses[0].failure.text
    assert "in run" in pb.logged[0]
    assert "ZeroDivisionError: oops" in pb.logged[0]


def test_a_request_that_cannot_be_read_fails_alone() -> None:
    """Raised out of ``execute`` it would fail the whole batch."""

    class Unreadable(PbRequest):
        def parameters(self) -> str:
            return '{"weight":'

    pb = PbUtils()
    first, refused, last = PythonBackend(pb, ARGS).execute(Doubling(), [request(1), Unreadable({}), request(2)])
    assert [first.output_tensors[0].array.item(), last.output_tensors[0].array.item()] == [2, 4]
    assert refused.failure.code == "INTERNAL"
    assert "JSONDecodeError" in pb.logged[0]


def test_truncate_and_deadline_are_read() -> None:
    step = Doubling()
    before = time.monotonic()
    PythonBackend(PbUtils(), ARGS).execute(
        step, [request(0, given={"truncate": True}, timeout_us=2_000_000), request(1)]
    )
    first, second = step.seen
    assert first.truncate
    assert first.deadline is not None
    assert before + 2 <= first.deadline <= time.monotonic() + 2
    assert (second.truncate, second.deadline) == (None, None)


def test_how_texts_are_cut_is_read_and_wrong_types_are_refused() -> None:
    step = Doubling()
    given = {"truncate": True, "truncation_side": "left", "token_limit": 9}
    PythonBackend(PbUtils(), ARGS).execute(step, [request(0, given=given)])
    assert step.seen[0].truncate == Truncation(Side.LEFT, 9)
    for name, value in (("truncation_side", "up"), ("truncation_side", 1), ("token_limit", True), ("token_limit", 0)):
        (answer,) = PythonBackend(PbUtils(), ARGS).execute(step, [request(0, given={"truncate": True, name: value})])
        assert name in str(answer.error)
    assert len(step.seen) == 1


def infer(pb: PbUtils, caller: StepRequest) -> np.ndarray:
    inputs = {Tensor.TEXT: np.array([[b"a"]], dtype=np.object_)}
    backend = PythonBackend(pb, ARGS)
    return asyncio.run(backend.infer(Model.EMBED_PASSAGE, inputs, Tensor.EMBEDDING, caller))


def test_an_inner_call_carries_parameters_and_what_is_left_of_the_time() -> None:
    pb = PbUtils(PbResponse([PbTensor("EMBEDDING", np.array([1.5]))]))
    assert infer(pb, StepRequest({}, True, time.monotonic() + 5)) == 1.5
    assert infer(pb, StepRequest({})) == 1.5
    first, second = pb.sent
    assert first["parameters"] == {"truncate": True}
    assert 4_000_000 < first["timeout"] <= 5_000_000
    assert (second["parameters"], second["timeout"]) == ({"truncate": False}, 0)


def test_an_inner_call_after_the_deadline_is_not_made() -> None:
    pb = PbUtils()
    with pytest.raises(DeadlineExceededError, match="Request timeout expired"):
        infer(pb, StepRequest({}, False, time.monotonic() - 1))
    assert pb.sent == []


class Kind(Enum):
    INVALID = InvalidInputError
    SHED = QueueFullError
    LATE = DeadlineExceededError
    OTHER = ServerFailedError


BLS = "Model encoder - Error when running inference: "


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (f"{BLS}in ensemble 'embed_passage', TEXT[3]: too many tokens (limit 4, got 9)", Kind.INVALID),
        ("in ensemble 'rerank', truncate: must be a bool request parameter, not 1", Kind.INVALID),
        (f"{BLS}[request id: <id_unknown>] Exceeds maximum queue size", Kind.SHED),
        ("in ensemble 'rerank', Request timeout expired", Kind.LATE),
        ("RuntimeError: out of memory", Kind.OTHER),
        ("the reranker's states are not finite", Kind.OTHER),
    ],
)
def test_the_code_that_the_python_backend_loses_is_told_from_the_text(message: str, kind: Kind) -> None:
    pb = PbUtils(PbResponse(failure=PbError(message, "INTERNAL")))
    with pytest.raises(ResRankError) as raised:
        infer(pb, StepRequest({}))
    assert type(raised.value) is kind.value
    assert type(inner_error(message)) is kind.value


def test_what_initialize_is_given() -> None:
    assert str(version_folder(ARGS)) == "/models/query_tokenizer/1"
    assert config_parameters(ARGS) == {"max_passages": "7"}


def backend_of(name: str) -> PythonBackend:
    config = {"input": [{"name": name}], "parameters": {}}
    return PythonBackend(PbUtils(), {"model_name": "m", "model_config": json.dumps(config)})


@pytest.mark.parametrize("timeout_us", [(1 << 64) - 1, 1 << 63])
def test_a_negative_timeout_is_the_callers_fault(timeout_us: int) -> None:
    request = PbRequest({"TEXT": np.array([[b"a"]], dtype=object)}, timeout_us=timeout_us)
    with pytest.raises(InvalidInputError, match="timeout: must not be negative"):
        backend_of("TEXT").read(request)


@pytest.mark.parametrize("timeout_us", [0, 10**15, 10**18, (1 << 63) - 1])
def test_a_timeout_of_a_lifetime_is_none(timeout_us: int) -> None:
    request = PbRequest({"TEXT": np.array([[b"a"]], dtype=object)}, timeout_us=timeout_us)
    assert backend_of("TEXT").read(request).deadline is None


@pytest.mark.parametrize("shape", [(0, 1), (0,), (0, 4), (1,)])
def test_an_input_without_rows_is_the_callers_fault(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="QUERY: has no rows"):
        backend_of("QUERY").read(PbRequest({"QUERY": np.empty(shape, dtype=object)}))
