"""Arrivals are a Poisson process of the profile's rate, by comparison with theory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from resrank.loadtest.arrivals import poisson_arrivals, stream_rng
from resrank.loadtest.profile import Profile


@dataclass(frozen=True)
class Phase:
    level: float
    duration_s: float
    ramp_s: float = 0.0


def arrivals(phases: list[Phase], seed: int = 0, share: float = 1.0) -> np.ndarray:
    return np.array(list(poisson_arrivals(Profile(phases), stream_rng(seed, 0), share=share)))


def test_gaps_at_a_steady_rate_are_exponential() -> None:
    times = arrivals([Phase(50, 200)])
    gaps = np.diff(times)
    assert stats.kstest(gaps, "expon", args=(0, 1 / 50)).pvalue > 0.01
    # Without memory: a gap does not tell the next one.
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4 / np.sqrt(len(gaps))


def test_counts_of_windows_have_the_variance_of_poisson() -> None:
    times = arrivals([Phase(50, 400)])
    counts = np.histogram(times, np.arange(0, 401))[0]
    # Index of dispersion: (n-1)·var/mean is chi-square with n-1 degrees of freedom.
    dispersion = 399 * counts.var(ddof=1) / counts.mean()
    assert stats.chi2(399).ppf(0.005) < dispersion < stats.chi2(399).ppf(0.995)


def test_the_rate_follows_ramps_and_phases() -> None:
    phases = [Phase(40, 20, ramp_s=20), Phase(120, 10), Phase(20, 20, ramp_s=10)]
    # Areas by hand: a triangle, a rectangle, a trapezium and a rectangle.
    windows = [((0, 20), 400), ((20, 30), 1200), ((30, 40), 700), ((40, 50), 200)]
    runs = 40
    for (start, end), expected in windows:
        total = sum(
            np.count_nonzero((t >= start) & (t < end)) for t in (arrivals(phases, seed) for seed in range(runs))
        )
        assert abs(total - runs * expected) < 4 * np.sqrt(runs * expected)
    first_half = sum(np.count_nonzero(arrivals(phases, seed) < 10) for seed in range(runs))
    assert abs(first_half - runs * 100) < 4 * np.sqrt(runs * 100)


def test_a_profile_knows_its_level_and_area_everywhere() -> None:
    profile = Profile([Phase(40, 20, ramp_s=20), Phase(120, 10)])
    assert (profile.duration_s, profile.total) == (30, 1600)
    assert [profile.at(time) for time in (-1, 0, 5, 10, 20, 29.9, 30)] == [0, 0, 10, 20, 120, 120, 0]
    assert profile.when(1600.1) is None
    for time in (0.5, 3.0, 19.0, 25.0):
        area = time**2 if time <= 20 else 400 + 120 * (time - 20)
        assert profile.when(area) == pytest.approx(time)


def test_streams_of_shares_make_the_whole_and_differ() -> None:
    parts = [
        np.array(list(poisson_arrivals(Profile([Phase(60, 100)]), stream_rng(3, index), share=1 / 3)))
        for index in range(3)
    ]
    assert all(abs(len(part) - 2000) < 4 * np.sqrt(2000) for part in parts)
    together = np.sort(np.concatenate(parts))
    assert stats.kstest(np.diff(together), "expon", args=(0, 1 / 60)).pvalue > 0.01
    assert len(np.unique(together)) == len(together)


def test_the_same_seed_gives_the_same_arrivals_and_another_does_not() -> None:
    phases = [Phase(20, 10)]
    np.testing.assert_array_equal(arrivals(phases, 5), arrivals(phases, 5))
    assert arrivals(phases, 5)[0] != arrivals(phases, 6)[0]
