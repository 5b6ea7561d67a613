"""Fits what scores mean: maps to the share of relevant passages, chosen by how they do on questions they have not seen.

A sigmoid (Platt) has two numbers and holds where there are few judgements; an isotonic map follows whatever the
judgements say. Both come from scikit-learn. The better one by held-out log loss is kept, fitted to all questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss
from sklearn.model_selection import GroupKFold

from resrank.core.calibration import MAX_STEPS, UNCALIBRATED, FittedMap, Isotonic, Platt
from resrank.core.calibration_file import HeldOut
from resrank.core.errors import InvalidInputError

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Truths = NDArray[np.bool_]

_ECE_BINS = 15
"""Of equal width, as in Guo et al., "On Calibration of Modern Neural Networks" (2017)."""

_DECIMALS = 5  # of what is stored: nobody's judgements tell more


@dataclass(frozen=True)
class JudgedScores:
    """Scores of one kind with judgements, of all questions one behind the other.

    Attributes:
        scores: FP64 [n].
        relevant: bool [n].
        questions: INT64 [n], which question each belongs to.
        collections: INT64 [n], which collection.
    """

    scores: Float64
    relevant: Truths
    questions: Int64
    collections: Int64

    @property
    def weights(self) -> Float64:
        """FP64 [n], by which every collection counts alike; their mean is 1."""
        _, places, counts = np.unique(self.collections, return_inverse=True, return_counts=True)
        weights: Float64 = (len(self.scores) / len(counts) / counts)[places]
        return weights

    def of(self, chosen: Int64) -> JudgedScores:
        """Those at some places."""
        return JudgedScores(
            self.scores[chosen], self.relevant[chosen], self.questions[chosen], self.collections[chosen]
        )


@dataclass(frozen=True)
class Fitted:
    """A map, and how the maps that were tried do on held-out questions.

    Attributes:
        relevance: Fitted to all questions.
        held_out: Name of each map, the one without a fit first, to its figures.
        by_collection: Number of each collection to the figures of the one that was chosen, held out.
    """

    relevance: FittedMap
    held_out: Mapping[str, HeldOut]
    by_collection: Mapping[int, HeldOut]


def fit_relevance(judged: JudgedScores, *, folds: int, seed: int) -> Fitted:
    """Fits both maps and keeps the one with the smaller log loss on questions that it was not fitted to.

    Args:
        judged: The scores.
        folds: Parts that the questions are divided into, each once held out.
        seed: Of the division.

    Raises:
        InvalidInputError: There are too few questions, nothing or everything is relevant, or relevant passages do not
            score higher.
    """
    questions = len(np.unique(judged.questions))
    if questions < folds:
        raise InvalidInputError("collections", "too few questions with candidates", limit=folds, value=questions)
    _refuse_one_sided(judged)
    kinds: dict[str, Callable[[JudgedScores], FittedMap]] = {Platt.name: fit_platt, Isotonic.name: fit_isotonic}
    told = {name: np.empty(len(judged.scores)) for name in kinds}
    parts = GroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    for rest, part in parts.split(judged.scores[:, None], groups=judged.questions):
        for name, fit in kinds.items():
            told[name][part] = fit(judged.of(rest)).of(judged.scores[part])
    held_out = {UNCALIBRATED.name: figures(UNCALIBRATED.of(judged.scores), judged)}
    held_out |= {name: figures(relevances, judged) for name, relevances in told.items()}
    best = min(kinds, key=lambda name: held_out[name].log_loss)
    by_collection = {
        int(number): figures(told[best][places], judged.of(places))
        for number in np.unique(judged.collections)
        for places in [np.flatnonzero(judged.collections == number)]
    }
    return Fitted(kinds[best](judged), held_out, by_collection)


def fit_platt(judged: JudgedScores) -> Platt:
    """A sigmoid, by maximum likelihood.

    Raises:
        InvalidInputError: Nothing or everything is relevant, or relevant passages do not score higher.
    """
    _refuse_one_sided(judged)
    model = LogisticRegression(C=np.inf)
    model.fit(judged.scores[:, None], judged.relevant, sample_weight=judged.weights)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:
        raise InvalidInputError(
            "collections", "relevant passages do not score higher than others: nothing can be told by these scores"
        )
    return Platt(round(slope, _DECIMALS), round(intercept, _DECIMALS))


def fit_isotonic(judged: JudgedScores) -> Isotonic:
    """A map that never falls, by least squares; nothing is told to be certain.

    Raises:
        InvalidInputError: Nothing or everything is relevant.
    """
    _refuse_one_sided(judged)
    least = 1.0 / (len(judged.scores) + 2)  # as Platt (1999) bounds what so many judgements can show
    model = IsotonicRegression(y_min=least, y_max=1.0 - least, out_of_bounds="clip")
    model.fit(judged.scores, judged.relevant.astype(np.float64), sample_weight=judged.weights)
    scores, first = np.unique(np.round(model.X_thresholds_, _DECIMALS), return_index=True)
    relevances = model.y_thresholds_[first]
    if len(scores) > MAX_STEPS:
        kept = np.unique(np.linspace(0, len(scores) - 1, MAX_STEPS).round().astype(int))
        scores, relevances = scores[kept], relevances[kept]
    return Isotonic(tuple(map(float, scores)), tuple(map(float, np.maximum.accumulate(relevances.round(6)))))


def figures(relevances: Float64, judged: JudgedScores) -> HeldOut:
    """How well relevances tell the judgements.

    Args:
        relevances: FP64 [n].
        judged: The scores that they are of.
    """
    weights = judged.weights
    return HeldOut(
        log_loss=round(float(log_loss(judged.relevant, relevances, sample_weight=weights, labels=[False, True])), 6),
        brier=round(float(brier_score_loss(judged.relevant, relevances, sample_weight=weights)), 6),
        ece=round(calibration_error(relevances, judged.relevant, weights), 6),
    )


def calibration_error(relevances: Float64, relevant: Truths, weights: Float64) -> float:
    """Expected calibration error: of passages with like relevances, the mean of these less the share of the relevant.

    Args:
        relevances: FP64 [n], in 0 to 1.
        relevant: bool [n].
        weights: FP64 [n].
    """
    bins = np.minimum((relevances * _ECE_BINS).astype(int), _ECE_BINS - 1)
    gaps = np.bincount(bins, weights * (relevances - relevant), _ECE_BINS)
    return float(np.abs(gaps).sum() / weights.sum())


def _refuse_one_sided(judged: JudgedScores) -> None:
    relevant = int(judged.relevant.sum())
    if not 0 < relevant < len(judged.relevant):
        raise InvalidInputError(
            "collections",
            "the candidates must be relevant in part",
            limit=f"1 to {len(judged.relevant) - 1}",
            value=relevant,
        )
