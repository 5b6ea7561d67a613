"""What every benchmark gives back: two sides of one comparison, and whether their ratio is within its target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

import numpy as np

from resrank.core.errors import ResRankError


class BenchmarkError(ResRankError):
    """A benchmark cannot be run, or its two sides did not compute the same, which would make a ratio meaningless."""


class Bound(StrEnum):
    """On which side of the target a ratio has to lie."""

    AT_MOST = "≤"
    AT_LEAST = "≥"


@dataclass(frozen=True)
class Side:
    """Repeated runs of one side.

    Attributes:
        label: What ran.
        median: Of all runs, in the measurement's unit.
        p95: 95th percentile.
        least: Smallest.
        greatest: Largest.
        runs: How many.
    """

    label: str
    median: float
    p95: float
    least: float
    greatest: float
    runs: int

    @classmethod
    def of(cls, label: str, samples: Sequence[float]) -> Self:
        """Summarises samples.

        Args:
            label: What ran.
            samples: One figure a run, at least one.
        """
        median, p95 = np.percentile(samples, (50, 95))
        return cls(label, float(median), float(p95), min(samples), max(samples), len(samples))


@dataclass(frozen=True)
class Measurement:
    """One comparison.

    Attributes:
        name: Of the benchmark.
        unit: Of all sides' figures.
        measured: What the ratio is of: what this project does, or, of a ratio that says how many times faster that is,
            the other side.
        baseline: What it is held against.
        bound: Whether the ratio has to be small or large.
        target: The bound itself, of ``measured.median / baseline.median``.
        others: Further sides that were measured in the same run and are not judged.
        facts: Further figures, each named with its unit.
    """

    name: str
    unit: str
    measured: Side
    baseline: Side
    bound: Bound
    target: float
    others: tuple[Side, ...] = ()
    facts: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """``measured.median / baseline.median``."""
        return self.measured.median / self.baseline.median

    @property
    def passed(self) -> bool:
        """Whether the ratio is within its target."""
        return self.ratio <= self.target if self.bound is Bound.AT_MOST else self.ratio >= self.target
