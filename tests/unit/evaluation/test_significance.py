"""Intervals and p-values, against plain loops and full enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resrank.evaluation.significance import difference


def test_mean_wins_losses_and_ties_by_hand() -> None:
    found = difference(np.array([0.5, 0.2, 0.9, 0.3]), np.array([0.25, 0.4, 0.9, 0.3 - 1e-12]))
    assert found.mean == pytest.approx(0.0125)
    assert (found.wins, found.losses, found.ties) == (1, 1, 2)


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.beta(2, 2, 60), rng.beta(2, 3, 60)
    means = []
    for _ in range(20_000):
        chosen = rng.integers(0, 60, 60)
        means.append((first[chosen] - second[chosen]).mean())
    low, high = np.percentile(means, [2.5, 97.5])

    found = difference(first, second)

    spread = np.std(means)
    assert found.low == pytest.approx(low, abs=0.1 * spread)
    assert found.high == pytest.approx(high, abs=0.1 * spread)


@settings(max_examples=10)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=8))
def test_the_p_value_of_few_questions_is_that_of_every_assignment_of_signs(gaps: list[int]) -> None:
    observed = abs(sum(gaps))
    signed = [
        abs(sum(s * gap for s, gap in zip(signs, gaps, strict=True))) for signs in product((1, -1), repeat=len(gaps))
    ]
    expected = sum(total >= observed for total in signed) / len(signed)

    assert difference(np.array(gaps) / 100 + 0.5, np.full(len(gaps), 0.5)).p == pytest.approx(min(expected, 1))


def test_the_p_value_of_many_questions_is_near_the_t_tests() -> None:
    from scipy import stats

    rng = np.random.default_rng(2)
    first, second = rng.normal(0.53, 0.2, 300), rng.normal(0.5, 0.2, 300)
    assert difference(first, second).p == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=0.02)


def test_equal_rankings_differ_by_nothing() -> None:
    values = np.array([0.1, 0.7, 0.4])
    found = difference(values, values.copy())
    assert (found.mean, found.low, found.high, found.p, found.ties) == (0, 0, 0, 1, 3)


def test_one_question_proves_nothing() -> None:
    found = difference(np.array([0.9]), np.array([0.1]))
    assert (found.low, found.high, found.p, found.wins) == (pytest.approx(0.8), pytest.approx(0.8), 1, 1)


def test_the_seed_decides() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random(40), rng.random(40)
    assert difference(first, second, seed=7) == difference(first, second, seed=7)
    assert difference(first, second, seed=7) != difference(first, second, seed=8)
