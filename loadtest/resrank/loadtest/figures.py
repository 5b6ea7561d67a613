"""What a recording says: latency, outcomes and goodput of windows of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resrank.core.outcomes import Outcome
from resrank.loadtest.kinds import KINDS, OUTCOMES, CallKind
from resrank.loadtest.recording import Calls
from resrank.loadtest.slo import PERCENTILES

_OK = OUTCOMES.index(Outcome.OK)
_SHED = OUTCOMES.index(Outcome.SHED)

_SETTLED_S = 3
"""So many normal seconds in a row are a recovery: at some calls a second, a single one may be either by chance."""


@dataclass(frozen=True)
class Latency:
    """Latency of some calls in milliseconds. A percentile is the latency of a call, never a value between two.

    Attributes:
        calls: How many.
        mean: Of them.
        greatest: Of them.
        percentiles: Name (``p95``) to value.
    """

    calls: int
    mean: float
    greatest: float
    percentiles: Mapping[str, float]

    @classmethod
    def of(cls, seconds: NDArray[np.float32]) -> Latency | None:
        """Summarises latencies in seconds; None when there are none."""
        if not len(seconds):
            return None
        values = np.percentile(seconds, list(PERCENTILES.values()), method="inverted_cdf") * 1e3
        names = dict(zip(PERCENTILES, map(float, values), strict=True))
        return cls(len(seconds), float(seconds.mean() * 1e3), float(seconds.max() * 1e3), names)


@dataclass(frozen=True)
class Figures:
    """One window of time.

    Attributes:
        start: Seconds from the run's start.
        end: Likewise.
        calls: Calls that should have started in it.
        outcomes: How they ended, of all kinds together.
        outcomes_by_kind: Likewise, by kind.
        latency: Of those that ended well, by kind.
        time_to_shed: Of those that were shed.
        late: How much later than they should calls were sent: what the load generator itself added.
        goodput: Calls a second that ended well within the window, whenever they started.
    """

    start: float
    end: float
    calls: int
    outcomes: Mapping[Outcome, int]
    outcomes_by_kind: Mapping[CallKind, Mapping[Outcome, int]]
    latency: Mapping[CallKind, Latency]
    time_to_shed: Latency | None
    late: Latency | None
    goodput: float

    @property
    def offered(self) -> float:
        """Calls a second that should have started."""
        return self.calls / (self.end - self.start)

    @property
    def non_ok_share(self) -> float:
        """Share of the calls that did not end well."""
        return 1 - self.outcomes[Outcome.OK] / self.calls if self.calls else 0.0


def figures(calls: Calls, start: float, end: float) -> Figures:
    """The figures of the calls of a window.

    Args:
        calls: All calls of the run, by start.
        start: Seconds from the run's start.
        end: Likewise, after ``start``.
    """
    ended = calls["start"] + calls["latency"]
    good = calls["outcome"] == _OK
    completed = int(np.count_nonzero(good & (ended >= start) & (ended < end)))
    inside = starting(calls, start, end)
    by_kind = {kind: inside[inside["kind"] == place] for place, kind in enumerate(KINDS)}
    latencies = {kind: Latency.of(of_kind["latency"][of_kind["outcome"] == _OK]) for kind, of_kind in by_kind.items()}
    return Figures(
        start=start,
        end=end,
        calls=len(inside),
        outcomes=_count(inside),
        outcomes_by_kind={kind: _count(of_kind) for kind, of_kind in by_kind.items() if len(of_kind)},
        latency={kind: latency for kind, latency in latencies.items() if latency is not None},
        time_to_shed=Latency.of(inside["latency"][inside["outcome"] == _SHED]),
        late=Latency.of(inside["late"]),
        goodput=completed / (end - start),
    )


def starting(calls: Calls, start: float, end: float) -> Calls:
    """The calls that should have started in a window, found without looking at all of them.

    Args:
        calls: By start.
        start: Seconds from the run's start.
        end: Likewise.
    """
    first, last = np.searchsorted(calls["start"], (start, end))
    return calls[first:last]


def recovery_s(calls: Calls, normal: tuple[float, float], start: float, end: float) -> float | None:
    """How long after a burst it is felt.

    Args:
        calls: All calls of the run, by start.
        normal: The window, start and end in seconds, whose latency is normal.
        start: When the burst ended, which is when the window to look at starts.
        end: When the window ends.

    Returns:
        Seconds from ``start`` to the first of three seconds in a row that are normal; None when there are none, nothing
        was called, or no call of the normal window ended well. A second is normal unless the median latency of one
        kind of call lies above that kind's 95th percentile in the normal window, more calls than in the normal window,
        by share, did not end well, or none was started while one lasted all of it.
    """
    if not len(starting(calls, start, end)):
        return None
    usual = figures(calls, *normal)
    if not usual.latency:
        return None
    in_a_row = 0
    for second in range(int(end - start)):
        window = (start + second, start + second + 1)
        begun = starting(calls, *window)
        if not len(begun) and _under_way(calls, *window):  # users who all wait start nothing
            in_a_row = 0
        else:
            in_a_row = 0 if _is_worse(figures(begun, *window), usual) else in_a_row + 1
        if in_a_row == _SETTLED_S:
            return float(second + 1 - _SETTLED_S)
    return None


def _under_way(calls: Calls, start: float, end: float) -> bool:
    """Whether a call lasts all of a window."""
    before = calls[: np.searchsorted(calls["start"], start)]
    return bool((before["start"] + before["latency"] >= end).any())


def _is_worse(now: Figures, usual: Figures) -> bool:
    if now.calls and now.non_ok_share > usual.non_ok_share:
        return True
    return any(
        kind in usual.latency and latency.percentiles["p50"] > usual.latency[kind].percentiles["p95"]
        for kind, latency in now.latency.items()
    )


def _count(calls: Calls) -> dict[Outcome, int]:
    counts = np.bincount(calls["outcome"], minlength=len(OUTCOMES))
    return {outcome: int(counts[place]) for place, outcome in enumerate(OUTCOMES)}
