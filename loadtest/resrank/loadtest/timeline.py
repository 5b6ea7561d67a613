"""A run second by second: what is drawn, and what stands in the CSV files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resrank.core.outcomes import Outcome
from resrank.loadtest.figures import Figures, figures, starting
from resrank.loadtest.kinds import KINDS, OUTCOMES, CallKind
from resrank.loadtest.recording import Calls

_MOST_STEPS = 1200
"""Points on a curve: longer runs are cut into longer steps."""


@dataclass(frozen=True)
class Timeline:
    """A run in equal steps.

    Attributes:
        step_s: Length of a step in seconds.
        steps: The figures of each, of the calls that start in it alone: goodput is in ``ended``.
        ended: Calls that ended in each step, a second, by outcome.
        in_flight: Calls under way at each step's end.
    """

    step_s: float
    steps: tuple[Figures, ...]
    ended: dict[Outcome, NDArray[np.float64]]
    in_flight: NDArray[np.int64]

    @property
    def kinds(self) -> list[CallKind]:
        """The kinds that were called."""
        return [kind for kind in KINDS if any(kind in step.outcomes_by_kind for step in self.steps)]

    def rows(self) -> Iterator[dict[str, float | int | str | None]]:
        """One row a step and kind, for a CSV file; latencies are of calls that ended well."""
        for step in self.steps:
            for kind in self.kinds:
                outcomes, latency = step.outcomes_by_kind.get(kind, {}), step.latency.get(kind)
                yield {
                    "start_s": round(step.start, 3),
                    "kind": kind.value,
                    "calls": sum(outcomes.values()),
                    **{outcome.value: outcomes.get(outcome, 0) for outcome in OUTCOMES},
                    **{
                        f"{name}_ms": None if latency is None else round(latency.percentiles[name], 3)
                        for name in ("p50", "p95", "p99")
                    },
                }


def timeline(calls: Calls, seconds: float) -> Timeline:
    """Cuts a run into steps of a second, or more where it is long.

    Args:
        calls: All its calls, by start.
        seconds: Its length.
    """
    step = max(1.0, float(np.ceil(seconds / _MOST_STEPS)))
    edges = np.arange(0, max(seconds, step) + step / 2, step)
    steps = tuple(figures(starting(calls, start, start + step), start, start + step) for start in edges[:-1].tolist())
    ends = calls["start"] + calls["latency"]
    ended = {
        outcome: np.histogram(ends[calls["outcome"] == place], edges)[0] / step
        for place, outcome in enumerate(OUTCOMES)
    }
    in_flight = np.searchsorted(calls["start"], edges[1:], "right") - np.searchsorted(np.sort(ends), edges[1:], "right")
    return Timeline(float(step), steps, ended, in_flight)
