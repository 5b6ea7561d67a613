"""The map of cosines, on vectors whose statistics are known."""

from __future__ import annotations

import numpy as np
import pytest

from resrank.core.errors import InvalidInputError
from resrank.training.cosine_fit import DEVIATION, OFFSET, fit_cosines
from support.exact_index import ExactIndex

D, COUNT = 256, 2000


def passages(common: float) -> np.ndarray:
    """Unit vectors with one share in common and the rest at random, fp16 [COUNT, D]: two have a mean cosine common²."""
    rest = np.random.default_rng(0).normal(size=(COUNT, D))
    rest[:, 0] = 0
    rest *= np.sqrt(1 - common**2) / np.linalg.norm(rest, axis=1, keepdims=True)
    rest[:, 0] = common
    return rest.astype(np.float16)


@pytest.mark.parametrize("common", [0.2, 0.8])
def test_random_pairs_and_the_deviation_of_lists_come_out_where_they_should(common: float) -> None:
    vectors = passages(common)
    questions = np.random.default_rng(1).normal(size=(50, D)).astype(np.float32)
    fit = fit_cosines(vectors, questions, ExactIndex(vectors))
    assert fit.random == pytest.approx(common**2, abs=2e-3)
    assert (fit.passages, fit.questions) == (COUNT, 50)

    # By loops: the mapped cosines of a list deviate by as much as was asked for, those of random passages lie at it.
    units = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    deviations = []
    for question in questions.astype(np.float64):
        cosines = np.sort(units @ question / np.linalg.norm(question))[-100:]
        deviations.append(np.std([fit.cosine_map.apply(float(cosine)) for cosine in cosines]))
    assert np.mean(deviations) == pytest.approx(DEVIATION, rel=1e-3)
    assert fit.cosine_map.apply(fit.random) == pytest.approx(OFFSET, abs=fit.cosine_map.slope * 1e-4)


def test_the_same_vectors_give_the_same_map() -> None:
    vectors, questions = passages(0.5), np.random.default_rng(2).normal(size=(9, D)).astype(np.float32)
    assert fit_cosines(vectors, questions, ExactIndex(vectors)) == fit_cosines(vectors, questions, ExactIndex(vectors))


def test_what_has_no_scale_is_refused() -> None:
    vectors, questions = passages(0.5), np.ones((1, D), np.float32)
    with pytest.raises(InvalidInputError, match=r"too few distinct passages .* \(limit 200, got 199\)"):
        fit_cosines(vectors[:199], questions, ExactIndex(vectors[:199]))
    with pytest.raises(InvalidInputError, match="its passages are all alike to the encoder"):
        fit_cosines(np.ones((300, D), np.float16), questions, ExactIndex(np.ones((300, D), np.float16)))
