"""The fits against computations of their own, and the choice between them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from resrank.core.calibration import MAX_STEPS, Isotonic, Platt
from resrank.core.errors import InvalidInputError
from resrank.evaluation.calibration import (
    JudgedScores,
    calibration_error,
    figures,
    fit_isotonic,
    fit_platt,
    fit_relevance,
)


def judged(scores: np.ndarray, relevant: np.ndarray, *, per_question: int = 20, first: float = 1.0) -> JudgedScores:
    """Scores in questions of equal length, the first part of them of another collection than the rest."""
    count = len(scores)
    return JudgedScores(
        scores, relevant, np.arange(count) // per_question, (np.arange(count) >= first * count).astype(np.int64)
    )


def drawn(count: int, seed: int = 0) -> JudgedScores:
    """Relevant with the probability 1 / (1 + exp(-(9 s - 4)))."""
    random = np.random.default_rng(seed)
    scores = random.normal(0.3, 0.2, count)
    return judged(scores, random.random(count) < 1 / (1 + np.exp(4 - 9 * scores)))


def test_a_sigmoid_is_the_one_of_the_greatest_likelihood_with_each_collection_counting_alike() -> None:
    given = drawn(4000)
    given = judged(given.scores, given.relevant, first=0.25)

    def loss(parameters: np.ndarray) -> float:
        told = 1 / (1 + np.exp(-(parameters[0] * given.scores + parameters[1])))
        losses = -np.log(np.where(given.relevant, told, 1 - told))
        return float(losses[:1000].mean() + losses[1000:].mean())

    slope, intercept = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}).x
    fitted = fit_platt(given)
    assert fitted.slope == pytest.approx(slope, rel=1e-3)
    assert fitted.intercept == pytest.approx(intercept, rel=1e-3)
    assert fitted.slope == pytest.approx(9.0, rel=0.15)


def pooled(scores: np.ndarray, relevant: np.ndarray) -> dict[float, float]:
    """Adjacent violators pooled by hand: score to the mean of its pool."""
    pools: list[tuple[list[float], float]] = []
    for score, truth in sorted(zip(scores.tolist(), relevant.tolist(), strict=True)):
        pools.append(([score], float(truth)))
        while len(pools) > 1 and pools[-2][1] >= pools[-1][1]:
            (left, low), (right, high) = pools[-2:]
            mean = (low * len(left) + high * len(right)) / (len(left) + len(right))
            pools[-2:] = [([*left, *right], mean)]
    return {score: mean for scores_of, mean in pools for score in scores_of}


def test_an_isotonic_map_is_what_pooling_adjacent_violators_gives() -> None:
    given = drawn(300)
    expected = pooled(given.scores, given.relevant)
    fitted = fit_isotonic(given)
    found = fitted.of(given.scores)
    wanted = np.clip([expected[score] for score in given.scores], 1 / 302, 301 / 302)
    np.testing.assert_allclose(found, wanted, atol=2e-2)  # points are stored in five decimals, which moves a steep one
    assert np.median(np.abs(found - wanted)) < 1e-5


def test_however_many_steps_there_are_few_points_are_kept() -> None:
    given = drawn(50_000)
    fitted = fit_isotonic(given)
    assert 50 < len(fitted.scores) <= MAX_STEPS
    truth = 1 / (1 + np.exp(4 - 9 * np.linspace(-0.1, 0.7, 50)))
    np.testing.assert_allclose(fitted.of(np.linspace(-0.1, 0.7, 50)), truth, atol=0.06)


def test_the_map_that_does_better_on_questions_it_has_not_seen_is_kept() -> None:
    few = fit_relevance(drawn(200), folds=5, seed=0)
    assert isinstance(few.relevance, Platt)
    assert few.relevance == fit_platt(drawn(200))
    assert few.held_out["platt"].log_loss < few.held_out["isotonic"].log_loss

    random = np.random.default_rng(1)
    scores = random.uniform(0, 1, 20_000)
    stairs = np.select([scores < 0.3, scores < 0.7], [0.02, 0.3], 0.9)
    steps = fit_relevance(judged(scores, random.random(20_000) < stairs), folds=5, seed=0)
    assert isinstance(steps.relevance, Isotonic)
    assert steps.held_out["isotonic"].ece < 0.02 < steps.held_out["platt"].ece < steps.held_out["1 / (1 + exp(-s))"].ece


def test_nothing_is_told_of_a_question_by_its_own_judgements() -> None:
    """Relevance hangs on the question alone: what was fitted to it would tell it, what was not cannot."""
    random = np.random.default_rng(2)
    questions = np.repeat(np.arange(100), 5)
    scores = random.uniform(0, 1, 100)[questions] + np.tile(np.arange(5) * 1e-4, 100)
    relevant = (random.random(100) < 0.2 + 0.2 * scores[::5])[questions]
    given = JudgedScores(scores, relevant, questions, np.zeros(500, np.int64))
    seen = figures(fit_isotonic(given).of(scores), given)
    assert fit_relevance(given, folds=5, seed=0).held_out["isotonic"].log_loss > seen.log_loss + 0.05


def test_each_collection_has_figures_of_its_own() -> None:
    given = drawn(2000)
    found = fit_relevance(judged(given.scores, given.relevant, first=0.25), folds=5, seed=0)
    assert found.by_collection.keys() == {0, 1}
    mean = (found.by_collection[0].brier + found.by_collection[1].brier) / 2
    assert found.held_out[found.relevance.name].brier == pytest.approx(mean, abs=1e-5)


def test_the_calibration_error_by_hand() -> None:
    relevances = np.array([0.01, 0.02, 0.9, 0.95, 0.97, 1.0])
    relevant = np.array([False, True, True, True, False, True])
    # Bins of a fifteenth: the first two; 0.9 alone; the last three.
    gaps = [abs(0.03 - 1) / 6, abs(0.9 - 1) / 6, abs(2.92 - 2) / 6]
    assert calibration_error(relevances, relevant, np.ones(6)) == pytest.approx(sum(gaps))
    doubled = [abs(0.03 - 1) * 2, abs(0.9 - 1), abs(2.92 - 2)]
    weights = np.array([2.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    assert calibration_error(relevances, relevant, weights) == pytest.approx(sum(doubled) / 8)


def test_what_tells_nothing_is_refused() -> None:
    given = drawn(200)
    with pytest.raises(InvalidInputError, match=r"too few questions with candidates \(limit 11, got 10\)"):
        fit_relevance(given, folds=11, seed=0)
    with pytest.raises(InvalidInputError, match="relevant passages do not score higher than others"):
        fit_platt(judged(-given.scores, given.relevant))
    for fit in (fit_platt, fit_isotonic):
        with pytest.raises(InvalidInputError, match="must be relevant in part"):
            fit(judged(given.scores, np.zeros(200, bool)))
