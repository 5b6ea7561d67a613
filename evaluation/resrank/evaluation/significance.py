"""Whether two rankings differ: paired by question, so that hard and easy questions cancel out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Float64 = NDArray[np.float64]

RESAMPLES = 10_000
"""Of the bootstrap and of the randomisation test: a p-value near 0.05 is then exact to about 0.004."""

CONFIDENCE = 0.95
"""Of the interval."""

_TIE = 1e-9  # far below what one swap of two passages changes in any measure
_BATCH = 1000  # resamples drawn at once, which bounds the memory for large collections


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of one ranking's measure minus another's, over the same questions.

    Attributes:
        mean: The difference.
        low: Lower end of its 95 % interval, by the percentile bootstrap over questions.
        high: Upper end.
        p: Two-sided p-value of the paired randomisation test: how often signs drawn at random for the questions'
            differences give one at least as large (Smucker, Allan, Carterette, CIKM 2007, recommend it with the
            bootstrap and the t-test).
        wins: Questions where the first ranking is better.
        losses: Where it is worse.
        ties: Where both are equal.
    """

    mean: float
    low: float
    high: float
    p: float
    wins: int
    losses: int
    ties: int


def interval(values: Float64, *, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean over questions, by the percentile bootstrap.

    Args:
        values: FP64 [Q], one per question, at least one; of a single one nothing can be said, and both ends are it.
        seed: Of the resampling.

    Returns:
        Lower and upper end.
    """
    if len(values) == 1:
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def difference(first: Float64, second: Float64, *, seed: int = 0) -> Difference:
    """Compares two rankings.

    Args:
        first: FP64 [Q], one value per question, at least one.
        second: FP64 [Q], of the same questions.
        seed: Of the resampling.
    """
    gaps = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    gaps[np.abs(gaps) < _TIE] = 0.0
    wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
    mean = float(gaps.mean())
    low, high, p = mean, mean, 1.0
    if wins + losses:
        low, high = interval(gaps, seed=seed)
    changed = gaps[gaps != 0]  # a sign changes nothing for the others; without them, a small test is exact
    if len(changed) > 1:
        p = float(
            stats.permutation_test(
                (changed, np.zeros_like(changed)),  # exchanging the two is changing the sign
                _mean_gap,
                permutation_type="samples",
                n_resamples=RESAMPLES - 1,
                batch=_BATCH,
                vectorized=True,
                rng=np.random.default_rng(seed),
            ).pvalue
        )
    return Difference(mean, low, high, p, wins, losses, len(gaps) - wins - losses)


def _mean_gap(first: Any, second: Any, axis: int) -> Any:
    return np.mean(first - second, axis=axis)
