"""Timing of sides whose speeds differ by orders of magnitude, inside a bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from resrank.benchmarks.measurement import Side


@dataclass(frozen=True)
class Contender:
    """One side of a comparison over several sizes.

    Attributes:
        call: Does the work of one size.
        cost: How much work a size is, in any unit; only used to foresee a call's time from the size before.
        limit_s: A call that is foreseen to take longer is not made.
        budget_s: Time for all calls of one size; at least one is made.
    """

    call: Callable[[], object]
    cost: float
    limit_s: float = float("inf")
    budget_s: float = float("inf")


class BoundedRounds:
    """Times sides in turn, size after size, from small to large.

    A side's first call ever only warms it up. What a size will take is foreseen from the last one that was measured.
    """

    def __init__(self, most_runs: int) -> None:
        """Starts without knowledge.

        Args:
            most_runs: Timed calls of a side at one size, at most.
        """
        self._most_runs = most_runs
        self._seconds_per_cost: dict[str, float] = {}

    def measure(self, contenders: Mapping[str, Contender]) -> dict[str, Side | None]:
        """Times one size of all sides, call by call in turn, another one first in each round.

        Returns:
            Label to milliseconds; None for a side that would take longer than its limit.
        """
        spent: dict[str, list[float]] = {label: [] for label in contenders}
        runs = {label: self._runs(label, contender) for label, contender in contenders.items()}
        labels = list(contenders)
        for number in range(max(runs.values(), default=0)):
            first = number % len(labels)
            for label in labels[first:] + labels[:first]:
                if number < runs[label]:
                    spent[label].append(self._time(contenders[label]))
        for label, times in spent.items():
            if times:
                self._seconds_per_cost[label] = min(times) / 1e3 / contenders[label].cost
        return {label: Side.of(label, times) if times else None for label, times in spent.items()}

    def _runs(self, label: str, contender: Contender) -> int:
        if label not in self._seconds_per_cost:
            self._seconds_per_cost[label] = self._time(contender) / 1e3 / contender.cost
        foreseen = self._seconds_per_cost[label] * contender.cost
        if foreseen > contender.limit_s:
            return 0
        affordable = contender.budget_s / max(foreseen, 1e-6)
        return max(1, int(min(self._most_runs, affordable)))

    @staticmethod
    def _time(contender: Contender) -> float:
        started = time.perf_counter()
        contender.call()
        return 1e3 * (time.perf_counter() - started)
