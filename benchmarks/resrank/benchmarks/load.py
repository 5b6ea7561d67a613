"""Load on a server: closed loops of callers that wait for their answer, and open loops of arrivals that do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from resrank.core.errors import DeadlineExceededError, QueueFullError

Send = Callable[[], Awaitable[object]]
"""One request, answered or failed with an error of :mod:`resrank.core.errors`."""

_BACK_OFF_S = 0.5  # a caller that was shed and came back at once would only be shed again


class Outcome(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    SHED = "shed"
    EXPIRED = "expired"


@dataclass(frozen=True)
class Ended:
    """One request.

    Attributes:
        outcome: How it ended.
        due_s: When it was to be sent, in seconds since the load began. Time that the sender was late counts as latency.
        seconds: From then to its end.
    """

    outcome: Outcome
    due_s: float
    seconds: float


@dataclass(frozen=True)
class Load:
    """What a load did.

    Attributes:
        requests: All of them, in the order of their end.
        seconds: From the first request's start to the last one's end.
        client_cpu_s: Processor time that this process took meanwhile, which the servers did not have.
    """

    requests: tuple[Ended, ...]
    seconds: float
    client_cpu_s: float

    def count(self, outcome: Outcome) -> int:
        """How many ended so."""
        return sum(request.outcome is outcome for request in self.requests)

    @property
    def answered_per_s(self) -> float:
        """Throughput: answers a second."""
        return self.count(Outcome.ANSWERED) / self.seconds

    @property
    def client_cores(self) -> float:
        """Cores that the sender kept busy."""
        return self.client_cpu_s / self.seconds

    def latencies_ms(self, outcome: Outcome = Outcome.ANSWERED) -> list[float]:
        """Milliseconds of every request that ended so."""
        return [1e3 * request.seconds for request in self.requests if request.outcome is outcome]

    def since(self, due_s: float, until_s: float = float("inf")) -> Load:
        """The requests that were due in a part of the time; that part's length counts as the seconds."""
        part = tuple(request for request in self.requests if due_s <= request.due_s < until_s)
        return Load(part, min(until_s, self.seconds) - due_s, self.client_cpu_s)


async def closed_loop(send: Send, *, callers: int, requests: int) -> Load:
    """Callers that send the next request when the last one has ended.

    Args:
        send: One request.
        callers: How many at the same time.
        requests: Answers to get in all; what is shed is sent again after a rest.
    """
    left = requests
    ended: list[Ended] = []
    begin, cpu = time.perf_counter(), time.process_time()

    async def call() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await _send(send, time.perf_counter() - begin, begin, ended)
            if ended[-1].outcome is not Outcome.ANSWERED:
                left += 1
                await asyncio.sleep(_BACK_OFF_S)

    await asyncio.gather(*(call() for _ in range(callers)))
    return Load(tuple(ended), time.perf_counter() - begin, time.process_time() - cpu)


def arrivals(rate: float, seconds: float, rng: np.random.Generator, *, start_s: float = 0.0) -> list[float]:
    """When requests arrive that know nothing of each other: a Poisson process.

    Args:
        rate: Requests a second.
        seconds: For how long.
        rng: Source of chance.
        start_s: When it begins.

    Returns:
        Seconds, ascending.
    """
    number = rng.poisson(rate * seconds)
    return sorted((start_s + rng.uniform(0, seconds, number)).tolist())


async def open_loop(send: Send, due: Sequence[float]) -> Load:
    """Requests sent when they are due, whatever became of the earlier ones.

    Args:
        send: One request.
        due: Seconds since the beginning, ascending.
    """
    ended: list[Ended] = []
    begin, cpu = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for moment in due:
            await asyncio.sleep(max(0.0, begin + moment - time.perf_counter()))
            tasks.create_task(_send(send, moment, begin, ended))
    return Load(tuple(ended), time.perf_counter() - begin, time.process_time() - cpu)


async def _send(send: Send, due_s: float, begin: float, ended: list[Ended]) -> None:
    try:
        await send()
        outcome = Outcome.ANSWERED
    except QueueFullError:
        outcome = Outcome.SHED
    except DeadlineExceededError:
        outcome = Outcome.EXPIRED
    ended.append(Ended(outcome, due_s, time.perf_counter() - begin - due_s))
