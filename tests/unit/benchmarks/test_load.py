"""Loads count what a caller would: from when a request was due, each outcome by itself."""

from __future__ import annotations

import asyncio
import time

import pytest

from resrank.benchmarks import load as module
from resrank.benchmarks.load import closed_loop, open_loop
from resrank.benchmarks.measurement import BenchmarkError
from resrank.core.errors import DeadlineExceededError, QueueFullError
from resrank.core.outcomes import Outcome


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
    outcomes = [len(load.ended(outcome)) for outcome in (Outcome.OK, Outcome.SHED, Outcome.DEADLINE)]
    assert outcomes == [10, 1, 1]
    assert server.calls == 12
    assert server.most_running == 3
    assert load.answered_per_s == pytest.approx(10 / load.seconds)


async def test_a_closed_loop_that_nobody_answers_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACK_OFF_S", 0.001)
    monkeypatch.setattr(module, "_PATIENCE_S", 0.2)
    server = Server(*(QueueFullError("full") for _ in range(100_000)))
    with pytest.raises(BenchmarkError, match=r"no request was answered for 0\.2 s, the last one ended shed"):
        await closed_loop(server, callers=3, requests=10)


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    together = asyncio.Barrier(5)

    async def answers_when_all_have_come() -> None:
        await together.wait()

    async with asyncio.timeout(30):
        load = await open_loop(answers_when_all_have_come, [0.0] * 5)
    assert len(load.ended(Outcome.OK)) == 5


async def test_latency_counts_from_when_a_request_was_due() -> None:
    async def stalls() -> None:
        time.sleep(0.02)

    load = await open_loop(stalls, [0.0, 0.0, 0.0])
    assert load.ended(Outcome.OK)["latency"].max() >= 0.06


async def test_other_errors_are_nobodys_outcome() -> None:
    with pytest.raises(ExceptionGroup):
        await open_loop(Server(ValueError("a bug")), [0.0])
