"""Service level objectives: what a scenario demands of its figures."""

from __future__ import annotations

from pydantic import Field

from resrank.loadtest.kinds import CallKind
from resrank.loadtest.section import Section

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}
"""The percentiles that are reported and can be bounded."""


class LatencyBounds(Section):
    """Upper bounds, in milliseconds, of the latency of calls that ended well."""

    p50: float | None = Field(default=None, gt=0)
    p90: float | None = Field(default=None, gt=0)
    p95: float | None = Field(default=None, gt=0)
    p99: float | None = Field(default=None, gt=0)
    p999: float | None = Field(default=None, gt=0)

    def bounds(self) -> dict[str, float]:
        """Percentile to bound, of those that are given."""
        return {name: value for name in PERCENTILES if (value := getattr(self, name)) is not None}


class LatencySlo(Section):
    """Bounds for each kind of call."""

    rerank: LatencyBounds = LatencyBounds()
    rerank_text: LatencyBounds = LatencyBounds()
    search: LatencyBounds = LatencyBounds()
    embed: LatencyBounds = LatencyBounds()

    def of(self, kind: CallKind) -> LatencyBounds:
        """The bounds of one kind."""
        bounds: LatencyBounds = getattr(self, kind.value)
        return bounds


class Slo(Section):
    """All that must hold, over the whole run after its warm-up or over one phase. What is not given is not judged."""

    latency_ms: LatencySlo = LatencySlo()
    max_non_ok_share: float | None = Field(
        default=None, ge=0, le=1, description="Largest share of calls that did not end well."
    )
    min_goodput: float | None = Field(default=None, gt=0, description="Fewest calls a second that end well.")
    max_shed_p95_ms: float | None = Field(
        default=None, gt=0, description="95th percentile of the time until a shed call is told so."
    )

    @property
    def empty(self) -> bool:
        """Whether nothing is demanded."""
        return self == type(self)()

    def bounded_kinds(self) -> list[CallKind]:
        """Kinds of calls whose latency is bounded."""
        return [kind for kind in CallKind if self.latency_ms.of(kind).bounds()]


class PhaseSlo(Slo):
    """Of one phase; it can also bound how long the phase before it is felt."""

    max_recovery_s: float | None = Field(
        default=None, gt=0, description="Seconds from the phase's start until latency is back to that of the first one."
    )
