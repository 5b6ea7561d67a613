"""Requests are answered when they are done, in any order, and every one of them is answered."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import numpy as np
import pytest

from resrank.core.errors import InvalidInputError
from resrank.core.names import Tensor
from resrank.serving.deferred import DeferredBackend
from resrank.serving.load_metrics import CallerMetrics
from resrank.serving.python_backend import PythonBackend
from resrank.serving.step import Arrays, StepRequest
from support.pb_metrics import PbMetrics

from .test_python_backend import ARGS, CONFIG, PbRequest, PbResponse, PbTensor, PbUtils

ANSWERED_S = 10.0


class Waiting:
    """Answers a request's number once it is let go; some numbers have a meaning of their own."""

    def __init__(self) -> None:
        self.go = threading.Event()

    async def answer(self, request: StepRequest) -> Arrays:
        number = request.inputs[Tensor.TEXT].item()
        if number == 0:
            await asyncio.get_running_loop().run_in_executor(None, self.go.wait)
        if number == 7:
            raise InvalidInputError("TEXT", "unlucky")
        if number == 8:
            raise ZeroDivisionError("oops")
        if number == 6:
            return {Tensor.EMBEDDING: None}  # type: ignore[dict-item]
        if number == 9:
            raise asyncio.CancelledError
        return {Tensor.EMBEDDING: np.array([number])}


class Answered(PbRequest):
    """Tells when its answer has come."""

    def send(self, response: PbResponse, flags: int) -> None:
        super().send(response, flags)
        self.came.set()

    @property
    def came(self) -> threading.Event:
        return self.__dict__.setdefault("_came", threading.Event())

    def answer(self) -> Any:
        assert self.came.wait(ANSWERED_S)
        (response,) = self.sent
        return (response.failure.code, response.failure.text) if response.failure else response.output_tensors[0].array


def asked(number: int) -> Answered:
    return Answered({"TEXT": np.array([[number]])})


@pytest.fixture
def step() -> Waiting:
    return Waiting()


class StrictPbUtils(PbUtils):
    """Takes arrays only, as the real one."""

    @staticmethod
    def Tensor(name: str, array: np.ndarray) -> PbTensor:
        if not isinstance(array, np.ndarray):
            raise TypeError("not an array")
        return PbTensor(name, array)


@pytest.fixture
def pb() -> PbUtils:
    return StrictPbUtils()


@pytest.fixture
def deferred(step: Waiting, pb: PbUtils, metrics: PbMetrics) -> Any:
    config = {**CONFIG, "parameters": {"max_queue_size": {"string_value": "4"}}}
    backend = PythonBackend(pb, {**ARGS, "model_config": json.dumps(config)})
    made = DeferredBackend(backend, CallerMetrics(metrics, "rerank_text"), step)
    yield made
    step.go.set()
    made.close()
    assert metrics.values["resrank_requests_under_way"] == 0


@pytest.fixture
def metrics() -> PbMetrics:
    return PbMetrics()


def test_a_quick_request_does_not_wait_for_a_slow_one(deferred: DeferredBackend, step: Waiting) -> None:
    slow, quick, late = asked(0), asked(1), asked(2)
    deferred.execute([slow, quick])
    assert quick.answer() == 1
    deferred.execute([late])
    assert late.answer() == 2
    assert slow.sent == []
    step.go.set()
    assert slow.answer() == 0


def test_outputs_that_are_none_are_an_error_of_the_server(deferred: DeferredBackend) -> None:
    broken = asked(6)
    deferred.execute([broken])
    assert broken.answer()[0] == "INTERNAL"


def test_every_failure_is_an_answer(deferred: DeferredBackend, pb: PbUtils) -> None:
    unlucky, bug, cancelled, fine = (asked(number) for number in (7, 8, 9, 1))
    deferred.execute([unlucky, bug, cancelled, fine])
    assert unlucky.answer() == ("INVALID_ARG", "TEXT: unlucky")
    assert bug.answer()[0] == "INTERNAL"
    assert cancelled.answer()[0] == "INTERNAL"
    assert fine.answer() == 1
    assert any("ZeroDivisionError: oops" in text for text in pb.logged)


def test_requests_beyond_the_bound_are_shed_at_once_and_the_others_served(
    deferred: DeferredBackend, step: Waiting
) -> None:
    waiting = [asked(0) for _ in range(4)]
    deferred.execute(waiting)
    shed = asked(1)
    deferred.execute([shed])
    code, text = shed.answer()
    assert (code, text.startswith("Exceeds maximum queue size")) == ("UNAVAILABLE", True)
    step.go.set()
    assert [request.answer().item() for request in waiting] == [0] * 4
    late = asked(3)
    deferred.execute([late])
    assert late.answer() == 3
