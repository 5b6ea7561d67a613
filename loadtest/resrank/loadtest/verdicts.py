"""Whether figures keep the objectives of a scenario."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from resrank.loadtest.figures import Figures
from resrank.loadtest.scenario import Scenario
from resrank.loadtest.slo import PhaseSlo, Slo

WHOLE_RUN = "whole run"


class Bound(StrEnum):
    """On which side of the bound a figure has to lie."""

    AT_MOST = "≤"
    AT_LEAST = "≥"


@dataclass(frozen=True)
class Verdict:
    """One objective.

    Attributes:
        window: The phase, or the whole run after its warm-up.
        what: The figure.
        unit: Of figure and bound.
        bound: On which side the figure has to lie.
        limit: The bound itself.
        found: The figure; None where there is none, which misses the objective.
    """

    window: str
    what: str
    unit: str
    bound: Bound
    limit: float
    found: float | None

    @property
    def kept(self) -> bool:
        """Whether the objective is met."""
        if self.found is None:
            return False
        return self.found <= self.limit if self.bound is Bound.AT_MOST else self.found >= self.limit


def judge(slo: Slo, found: Figures, window: str) -> list[Verdict]:
    """Judges a window, its recovery aside.

    Args:
        slo: What must hold.
        found: The window's figures.
        window: Its name.
    """
    return list(_verdicts(slo, found, window))


def judge_recovery(slo: PhaseSlo, recovery_s: float | None, window: str) -> Verdict | None:
    """Judges how long the phase before is felt in a phase; None where that is not bounded."""
    if slo.max_recovery_s is None:
        return None
    return Verdict(window, "recovery", "s", Bound.AT_MOST, slo.max_recovery_s, recovery_s)


def normal_window(scenario: Scenario) -> tuple[float, float]:
    """The first phase, without its ramp and the run's warm-up where that leaves something of it."""
    phase, start, end = next(scenario.windows())
    settled = start + max(phase.ramp_s, scenario.warmup_s)
    return (settled if settled < end else start), end


def _verdicts(slo: Slo, found: Figures, window: str) -> Iterator[Verdict]:
    for kind in slo.bounded_kinds():
        latency = found.latency.get(kind)
        for name, limit in slo.latency_ms.of(kind).bounds().items():
            value = None if latency is None else latency.percentiles[name]
            yield Verdict(window, f"{kind} {name}", "ms", Bound.AT_MOST, limit, value)
    if slo.max_non_ok_share is not None:
        share = found.non_ok_share if found.calls else None
        yield Verdict(window, "share of calls not ok", "", Bound.AT_MOST, slo.max_non_ok_share, share)
    if slo.min_goodput is not None:
        yield Verdict(window, "goodput", "calls/s", Bound.AT_LEAST, slo.min_goodput, found.goodput)
    if slo.max_shed_p95_ms is not None:
        # Where nothing is shed nobody waits to be told so.
        value = 0.0 if found.time_to_shed is None else found.time_to_shed.percentiles["p95"]
        yield Verdict(window, "time to shed p95", "ms", Bound.AT_MOST, slo.max_shed_p95_ms, value)
