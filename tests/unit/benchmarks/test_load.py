"""Loads count what a caller would: from when a request was due, each outcome by itself."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from resrank.benchmarks import load as module
from resrank.benchmarks.load import Ended, Load, Outcome, arrivals, closed_loop, open_loop
from resrank.benchmarks.overload import recovery_s
from resrank.core.errors import DeadlineExceededError, QueueFullError


class Server:
    """Answers after a while; every so-manieth request ends with an error instead."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.running = self.most_running = self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0.001)
        self.running -= 1
        if self.errors:
            raise self.errors.pop()


async def test_a_closed_loop_gets_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACK_OFF_S", 0.001)
    server = Server(QueueFullError("full"), DeadlineExceededError("late"))
    load = await closed_loop(server, callers=3, requests=10)
    assert (load.count(Outcome.ANSWERED), load.count(Outcome.SHED), load.count(Outcome.EXPIRED)) == (10, 1, 1)
    assert server.calls == 12
    assert server.most_running == 3
    assert load.answered_per_s == pytest.approx(10 / load.seconds)


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    server = Server()
    load = await open_loop(server, [0.0] * 5)
    assert server.most_running == 5
    assert load.count(Outcome.ANSWERED) == 5


async def test_latency_counts_from_when_a_request_was_due() -> None:
    async def stalls() -> None:
        time.sleep(0.02)

    load = await open_loop(stalls, [0.0, 0.0, 0.0])
    assert sorted(load.latencies_ms())[-1] >= 60


async def test_other_errors_are_nobodys_outcome() -> None:
    with pytest.raises(ExceptionGroup):
        await open_loop(Server(ValueError("a bug")), [0.0])


def test_arrivals_are_as_many_as_the_rate_says() -> None:
    due = arrivals(50.0, 40.0, np.random.default_rng(0), start_s=7.0)
    assert due == sorted(due)
    assert 7.0 <= due[0] <= due[-1] <= 47.0
    assert len(due) == pytest.approx(2000, rel=0.1)
    gaps = np.diff(due)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)  # exponential


def load_of(*ended: tuple[Outcome, float, float]) -> Load:
    return Load(tuple(Ended(*request) for request in ended), 100.0, 5.0)


def test_a_part_of_a_load() -> None:
    load = load_of((Outcome.ANSWERED, 1.0, 0.1), (Outcome.SHED, 11.0, 0.01), (Outcome.ANSWERED, 12.0, 0.2))
    part = load.since(10.0, 20.0)
    assert part.latencies_ms() == [200.0]
    assert part.latencies_ms(Outcome.SHED) == [10.0]
    assert part.answered_per_s == pytest.approx(0.1)


def test_recovery_is_over_when_nothing_is_late_any_more() -> None:
    calm = load_of(*[(Outcome.ANSWERED, float(due), 1.0) for due in range(10)])
    after = load_of(
        (Outcome.SHED, 30.5, 0.01),
        (Outcome.ANSWERED, 31.0, 1.2),
        (Outcome.ANSWERED, 32.0, 4.0),
        (Outcome.ANSWERED, 33.0, 1.0),
    )
    assert recovery_s(calm, after, 30.0) == 2.0
    assert recovery_s(calm, load_of((Outcome.ANSWERED, 30.1, 1.0)), 30.0) == 0.0
