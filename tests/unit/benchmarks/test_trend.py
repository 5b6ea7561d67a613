from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import theilslopes

from resrank.benchmarks.trend import slope


def test_the_slope_is_that_of_an_independent_implementation() -> None:
    generator = np.random.default_rng(0)
    times = np.sort(generator.uniform(0, 10, 40))
    values = 300 + 0.7 * times + generator.normal(0, 2, 40)
    assert slope(times, values) == pytest.approx(theilslopes(values, times).slope, rel=1e-12)


def test_spikes_do_not_make_a_slope() -> None:
    times = [float(minute) for minute in range(20)]
    values = [500.0] * 20
    for spike in (3, 11, 19):
        values[spike] = 900.0
    assert slope(times, values) == 0.0
    assert slope(times, [value + 2 * at for at, value in zip(times, values, strict=True)]) == pytest.approx(2.0)


def test_one_moment_has_no_slope() -> None:
    with pytest.raises(ValueError, match="two different times"):
        slope([1.0, 1.0], [2.0, 3.0])
