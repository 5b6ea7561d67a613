"""Load on a server from one event loop: callers that wait for their answer, and arrivals that do not.

What is recorded, and what is read out of it, is :mod:`resrank.loadtest`'s, whose own load takes processes of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from resrank.benchmarks.measurement import BenchmarkError
from resrank.core.errors import DeadlineExceededError, QueueFullError
from resrank.core.outcomes import Outcome, outcome_of
from resrank.loadtest.figures import Figures, figures
from resrank.loadtest.kinds import OUTCOMES, CallKind
from resrank.loadtest.recording import Calls, Recording

Send = Callable[[], Awaitable[object]]
"""One ``rerank``, answered or failed with an error of :mod:`resrank.core.errors`."""

_BACK_OFF_S = 0.5  # a caller that was shed and came back at once would only be shed again
_PATIENCE_S = 120.0
"""A closed loop without an answer for so long will not have one: a request is answered or shed within its deadline."""


@dataclass(frozen=True)
class Load:
    """What a load did.

    Attributes:
        calls: All of them, by when they were to be sent. Time that the sender was late counts as latency.
        seconds: From the first request's start to the last one's end.
        client_cpu_s: Processor time that this process took meanwhile, which the servers did not have.
    """

    calls: Calls
    seconds: float
    client_cpu_s: float

    @property
    def figures(self) -> Figures:
        """Of the whole load."""
        return figures(self.calls, 0.0, self.seconds)

    @property
    def answered_per_s(self) -> float:
        """Throughput: answers a second."""
        return self.figures.outcomes[Outcome.OK] / self.seconds

    @property
    def client_cores(self) -> float:
        """Cores that the sender kept busy."""
        return self.client_cpu_s / self.seconds

    def ended(self, outcome: Outcome) -> Calls:
        """The calls that ended so."""
        chosen: Calls = self.calls[self.calls["outcome"] == OUTCOMES.index(outcome)]
        return chosen


async def closed_loop(send: Send, *, callers: int, requests: int) -> Load:
    """Callers that send the next request when the last one has ended.

    Args:
        send: One request.
        callers: How many at the same time.
        requests: Answers to get in all; what is shed is sent again after a rest.

    Raises:
        BenchmarkError: Nothing was answered for two minutes.
    """
    left = requests
    recording = Recording()
    begin, cpu = time.perf_counter(), time.process_time()
    answered = begin

    async def call() -> None:
        nonlocal left, answered
        while left > 0:
            left -= 1
            outcome = await _send(send, time.perf_counter() - begin, begin, recording)
            if outcome is Outcome.OK:
                answered = time.perf_counter()
                continue
            left += 1
            if time.perf_counter() - answered > _PATIENCE_S:
                raise BenchmarkError(f"no request was answered for {_PATIENCE_S:g} s, the last one ended {outcome}")
            await asyncio.sleep(_BACK_OFF_S)

    await asyncio.gather(*(call() for _ in range(callers)))
    return Load(recording.calls(), time.perf_counter() - begin, time.process_time() - cpu)


async def open_loop(send: Send, due: Iterable[float]) -> Load:
    """Requests sent when they are due, whatever became of the earlier ones.

    Args:
        send: One request.
        due: Seconds since the beginning, ascending.
    """
    recording = Recording()
    begin, cpu = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for moment in due:
            await asyncio.sleep(max(0.0, begin + moment - time.perf_counter()))
            tasks.create_task(_send(send, moment, begin, recording))
    return Load(recording.calls(), time.perf_counter() - begin, time.process_time() - cpu)


async def _send(send: Send, due_s: float, begin: float, recording: Recording) -> Outcome:
    outcome, sent = Outcome.OK, time.perf_counter() - begin
    try:
        await send()
    except (QueueFullError, DeadlineExceededError) as error:
        outcome = outcome_of(error)
    recording.add(CallKind.RERANK, outcome, start=due_s, sent=sent, end=time.perf_counter() - begin)
    return outcome
