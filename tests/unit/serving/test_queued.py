"""First come, first served, in the batches that the engine wants; every request is answered."""

from __future__ import annotations

import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from resrank.core.errors import InvalidInputError
from resrank.core.names import Tensor
from resrank.serving.engines import EngineError
from resrank.serving.load_metrics import PUBLISH_EVERY_S, EngineMetrics
from resrank.serving.python_backend import PythonBackend
from resrank.serving.queued import QueuedBackend
from resrank.serving.step import Answer, StepRequest
from support.pb_metrics import PbMetrics

from .test_deferred import Answered
from .test_python_backend import ARGS, CONFIG, PbResponse, PbUtils

BOUND = 6


class Unanswerable(Answered):
    """Whose response sender fails."""

    def send(self, response: PbResponse, flags: int) -> None:
        raise RuntimeError("no shared memory")


class Gated:
    """Doubles numbers, one batch each time it is let go; takes four rows at once."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        self.niceness: int | None = None

    def batch_size(self, waiting: int) -> int:
        return min(waiting, 4)

    def run(self, requests: Sequence[StepRequest]) -> list[Answer]:
        numbers = [request.inputs[Tensor.TEXT] for request in requests]
        self.batches.append([int(number[0, 0]) for number in numbers])
        self.started.release()
        assert self.go.acquire(timeout=10.0)
        self.niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        if self.batches[-1] == [13]:
            raise ZeroDivisionError("oops")
        return [
            InvalidInputError("TEXT", "unlucky") if number[0, 0] == 7 else {Tensor.EMBEDDING: 2 * number}
            for number in numbers
        ]


def asked(number: int, rows: int = 1, **fields: object) -> Answered:
    return Answered({"TEXT": np.full((rows, 1), number)}, **fields)  # type: ignore[arg-type]


@pytest.fixture
def step() -> Gated:
    return Gated()


@pytest.fixture
def metrics() -> PbMetrics:
    return PbMetrics()


Make = Callable[..., QueuedBackend]


@pytest.fixture
def make(step: Gated, metrics: PbMetrics) -> Iterator[Make]:
    made: list[QueuedBackend] = []

    def queued(engines: int = 1) -> QueuedBackend:
        config = {**CONFIG, "parameters": {"max_queue_size": {"string_value": str(BOUND)}}}
        backend = PythonBackend(PbUtils(), {**ARGS, "model_config": json.dumps(config)})
        made.append(QueuedBackend(backend, EngineMetrics(metrics, "encoder"), lambda: step, engines=engines))
        return made[-1]

    yield queued
    step.go.release(1000)
    for backend in made:
        backend.close()
    assert metrics.values["resrank_waiting_requests"] == 0
    assert metrics.values["resrank_requests_under_way"] == 0, "all were answered"


def busy(queued: QueuedBackend, step: Gated) -> Answered:
    """A request that is being computed until the step is let go."""
    first = asked(0)
    queued.execute([first])
    assert step.started.acquire(timeout=10.0)
    return first


def test_what_came_while_the_engine_worked_goes_together_in_its_order(make: Make, step: Gated) -> None:
    queued = make()
    first = busy(queued, step)
    others = [asked(number) for number in range(1, 7)]
    for request in others:
        queued.execute([request])
    step.go.release(3)
    assert [request.answer().item() for request in (first, *others)] == [0, 2, 4, 6, 8, 10, 12]
    assert step.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_what_is_computed_is_under_way_until_it_is_answered(make: Make, step: Gated, metrics: PbMetrics) -> None:
    queued = make()
    busy(queued, step)
    queued.execute([asked(1)])
    until = time.monotonic() + 40 * PUBLISH_EVERY_S
    while metrics.values["resrank_requests_under_way"] < 2 and time.monotonic() < until:
        time.sleep(PUBLISH_EVERY_S / 5)
    assert (metrics.values["resrank_waiting_requests"], metrics.values["resrank_requests_under_way"]) == (1, 2)


def test_a_request_is_never_split_and_does_not_overtake(make: Make, step: Gated) -> None:
    queued = make()
    busy(queued, step)
    requests = [asked(1), asked(2, rows=9), asked(3), asked(4, rows=3), asked(5)]
    queued.execute(requests)
    step.go.release(10)
    assert [len(request.answer()) for request in requests] == [1, 9, 1, 3, 1]
    assert step.batches == [[0], [1], [2], [3, 4], [5]]


def test_who_finds_the_queue_full_is_told_at_once(make: Make, step: Gated) -> None:
    queued = make()
    first = busy(queued, step)
    waiting = [asked(number) for number in range(1, 1 + BOUND)]
    shed = asked(50)
    queued.execute([*waiting, shed])
    code, text = shed.answer()
    assert (code, text.startswith("Exceeds maximum queue size")) == ("UNAVAILABLE", True)
    assert first.sent == []
    step.go.release(10)
    assert [request.answer().item() for request in waiting] == [2, 4, 6, 8, 10, 12]
    assert all(50 not in batch for batch in step.batches)


def test_what_nobody_waits_for_is_dropped_before_it_is_computed(make: Make, step: Gated, metrics: PbMetrics) -> None:
    queued = make()
    busy(queued, step)
    late, gone, wanted = asked(1, timeout_us=1), asked(2, gone=True), asked(3, timeout_us=60_000_000)
    queued.execute([late, gone, wanted])
    step.go.release(10)
    code, text = late.answer()
    assert (code, text.startswith("Request timeout expired: waited ")) == ("UNAVAILABLE", True)
    assert gone.answer()[0] == "CANCELLED"
    assert wanted.answer().item() == 6
    assert step.batches == [[0], [3]]
    queued.close()
    figures = {name: value for name, value in metrics.values.items() if value and "seconds" not in name}
    assert figures == {
        "resrank_requests_total{ok}": 2,
        "resrank_requests_total{deadline}": 1,
        "resrank_requests_total{cancelled}": 1,
        "resrank_batches_total": 2,
        "resrank_rows_total": 2,
        "resrank_waiting_requests_limit": BOUND,
    }
    assert metrics.values["resrank_compute_seconds_total"] > 0


def test_what_nobody_waits_for_takes_no_place_in_a_batch(make: Make, step: Gated) -> None:
    queued = make()
    busy(queued, step)
    gone = [asked(number, gone=True) for number in range(1, 4)]
    wanted = [asked(number) for number in range(4, 7)]
    queued.execute([*gone, *wanted])
    step.go.release(10)
    assert [request.answer().item() for request in wanted] == [8, 10, 12]
    assert step.batches == [[0], [4, 5, 6]]


def test_a_batch_of_which_nothing_is_left_is_no_batch(make: Make, step: Gated) -> None:
    queued = make()
    busy(queued, step)
    gone = asked(1, gone=True)
    queued.execute([gone])
    step.go.release(10)
    assert gone.answer()[0] == "CANCELLED"
    later = asked(5)
    queued.execute([later])
    assert later.answer().item() == 10
    assert step.batches == [[0], [5]]


def test_an_answer_that_cannot_be_sent_is_nobody_elses(make: Make, step: Gated) -> None:
    queued = make()
    busy(queued, step)
    lost = [Unanswerable({"TEXT": np.full((1, 1), number)}) for number in (1, 2)]
    unreadable = Unanswerable({"TEXT": np.ones((1, 1))}, given={"truncate": 1})
    fine = asked(3)
    queued.execute([lost[0], unreadable, fine, lost[1]])
    step.go.release(10)
    assert fine.answer().item() == 6
    later = asked(4)
    queued.execute([later])
    assert later.answer().item() == 8


def test_inputs_that_wait_are_bounded_in_bytes(make: Make, step: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resrank.serving.queued.MAX_WAITING_BYTES", 80)
    queued = make()
    busy(queued, step)
    large, shed = asked(1, rows=20), asked(2)  # int64: 160 bytes, taken because nothing waits
    queued.execute([large, shed])
    code, text = shed.answer()
    assert code == "UNAVAILABLE"
    assert text == "Exceeds maximum queue size of query_tokenizer: 80 bytes may wait, 160 do"
    step.go.release(10)
    assert len(large.answer()) == 20


def test_what_was_answered_is_let_go(make: Make, step: Gated) -> None:
    """Its inputs are in shared memory, and the next request may come tomorrow."""
    queued = make()
    request = asked(1)
    gone = weakref.ref(request)
    queued.execute([request])
    step.go.release(1)
    request.answer()
    del request
    until = time.monotonic() + 10.0
    while gone() is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert gone() is None


def test_an_error_is_its_requests_and_a_failed_batch_is_not_the_last(make: Make, step: Gated) -> None:
    queued = make()
    busy(queued, step)
    unlucky, fine = asked(7), asked(1)
    unreadable = Answered({"TEXT": np.ones((1, 1))}, given={"truncate": 1})
    queued.execute([unlucky, unreadable, fine])
    step.go.release(2)
    assert unlucky.answer() == ("INVALID_ARG", "TEXT: unlucky")
    assert unreadable.answer()[0] == "INVALID_ARG"
    assert fine.answer().item() == 2
    broken = asked(13)
    queued.execute([broken])
    step.go.release(1)
    assert broken.answer()[0] == "INTERNAL"
    later = asked(4)
    queued.execute([later])
    step.go.release(1)
    assert later.answer().item() == 8


def test_engines_share_the_queue(make: Make, step: Gated) -> None:
    queued = make(engines=2)
    first = busy(queued, step)
    second = busy(queued, step)
    assert step.batches == [[0], [0]]
    step.go.release(2)
    assert (first.answer().item(), second.answer().item()) == (0, 0)


def test_at_the_end_all_that_waits_is_answered(make: Make, step: Gated) -> None:
    queued = make()
    requests = [busy(queued, step), *map(asked, range(1, 6))]
    queued.execute(requests[1:])
    step.go.release(10)
    queued.close()
    assert all(len(request.sent) == 1 for request in requests)


def test_the_engines_thread_can_be_nicer_than_the_one_that_sheds(step: Gated, metrics: PbMetrics) -> None:
    usual = os.getpriority(os.PRIO_PROCESS, 0)

    def nice() -> Gated:
        os.nice(1)
        return step

    queued = QueuedBackend(PythonBackend(PbUtils(), ARGS), EngineMetrics(metrics, "encoder"), nice)
    step.go.release(1)
    busy(queued, step).answer()
    queued.close()
    assert (step.niceness, os.getpriority(os.PRIO_PROCESS, 0)) == (min(19, usual + 1), usual)


def test_an_engine_that_cannot_be_made_is_said_where_it_was_asked_for(metrics: PbMetrics) -> None:
    def fail() -> Gated:
        raise EngineError("no such engine")

    with pytest.raises(EngineError, match="no such engine"):
        QueuedBackend(PythonBackend(PbUtils(), ARGS), EngineMetrics(metrics, "encoder"), fail)


def test_an_engines_thread_outlives_what_is_told_of_its_work(
    make: Make, step: Gated, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queued = make()
    monkeypatch.setattr(queued._metrics, "batch", lambda *_: 1 / 0)
    step.go.release(10)
    for number in (1, 2):
        request = asked(number)
        queued.execute([request])
        assert request.answer().item() == 2 * number
    assert "goes on after an error" in caplog.text


def test_an_engine_that_cannot_say_how_much_it_takes_answers_with_the_error(make: Make, step: Gated) -> None:
    def broken(waiting: int) -> int:
        raise ZeroDivisionError("no size")

    queued = make()
    step.batch_size = broken  # type: ignore[method-assign]
    request = asked(1)
    queued.execute([request])
    assert request.answer()[0] == "INTERNAL"
