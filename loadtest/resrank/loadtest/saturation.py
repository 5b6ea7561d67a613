"""The highest rate that keeps the objectives, by doubling and bisection."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from resrank.loadtest.section import Section

if TYPE_CHECKING:
    from resrank.loadtest.summary import Summary

MOST_CALLS_WANTED = 200
"""A probe lasts until it has this many calls: a 95th percentile then rests on ten above it."""

LONGEST_PROBE = 4
"""A probe of a low rate lasts this many times the usual at most, so that the search ends."""


class Search(Section):
    """Where and how closely a saturation rate is sought."""

    low: float = Field(gt=0, le=100_000, description="Calls a second at which the search starts.")
    high: float = Field(gt=0, le=100_000, description="At which it ends.")
    tolerance: float = Field(
        ge=0.01, le=1, description="The rate found is at most this share below one that misses the objectives."
    )
    warmup_s: float = Field(ge=0, le=600, description="Seconds of each probe that are not judged.")
    probe_s: float = Field(ge=1, le=3600, description="Seconds of each probe that are; more at low rates.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low: {self.low:g} is above high, {self.high:g}")
        return self

    def probe_seconds(self, rate: float) -> float:
        """How long a probe of a rate is judged."""
        return min(max(self.probe_s, MOST_CALLS_WANTED / rate), LONGEST_PROBE * self.probe_s)

    @property
    def most_probes(self) -> int:
        """How many probes there are at most."""
        doublings = math.ceil(math.log2(self.high / self.low)) + 1
        bisections = math.ceil(math.log2(math.log(2) / math.log1p(self.tolerance)))
        return doublings + max(0, bisections)

    def longest_s(self, deadline_s: float) -> float:
        """Seconds after which the search has ended at the latest."""
        return self.most_probes * (self.warmup_s + LONGEST_PROBE * self.probe_s + deadline_s)


@dataclass(frozen=True)
class Probe:
    """One rate that was tried.

    Attributes:
        rate: Calls a second.
        summary: What was found.
    """

    rate: float
    summary: Summary


@dataclass(frozen=True)
class Saturation:
    """What a search found.

    Attributes:
        rate: The highest rate that kept the objectives; None when even the lowest missed them.
        missed: The lowest rate above it that missed them; None when even the highest kept them.
        probes: All that were tried, in their order.
    """

    rate: float | None
    missed: float | None
    probes: tuple[Probe, ...]


def find_saturation(search: Search, run: Callable[[float], Summary]) -> Saturation:
    """Searches.

    The rate is doubled from the lowest until the objectives are missed, then the interval is halved on a logarithmic
    scale until it is as narrow as the tolerance. Each rate is tried once: noise moves the result as it moves one run.

    Args:
        search: Where and how closely.
        run: Runs a probe at a rate.
    """
    probes: list[Probe] = []

    def keeps(rate: float) -> bool:
        probes.append(Probe(rate, run(rate)))
        return probes[-1].summary.kept

    kept: float | None = None
    missed: float | None = None
    rate = search.low
    while missed is None:
        if keeps(rate):
            kept = rate
            if rate >= search.high:
                break
            rate = min(2 * rate, search.high)
        else:
            missed = rate
    while kept is not None and missed is not None and missed / kept > 1 + search.tolerance:
        middle = math.sqrt(kept * missed)
        if keeps(middle):
            kept = middle
        else:
            missed = middle
    return Saturation(kept, missed, tuple(probes))
