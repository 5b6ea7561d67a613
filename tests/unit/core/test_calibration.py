from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.calibration import (
    MAX_STEPS,
    UNCALIBRATED,
    Calibration,
    FittedMap,
    Isotonic,
    Platt,
    Relevance,
    Sigmoid,
    read_calibration,
)
from resrank.core.errors import InvalidInputError

PLATT = Platt(4.0, -1.5)
STEPS = Isotonic((-0.5, 0.0, 0.25, 1.0), (0.0, 0.125, 0.125, 0.75))
BOTH = Calibration(PLATT, STEPS, 0.3)


def test_a_sigmoid_by_hand() -> None:
    scores = [-0.5, 0.0, 0.375, 2.0]
    expected = [1 / (1 + math.exp(-(4 * score - 1.5))) for score in scores]
    np.testing.assert_allclose(PLATT.of(np.array(scores, np.float32)), expected, rtol=1e-12)
    assert PLATT.of(np.array([1e30, -1e30])).tolist() == [1.0, 0.0]


def test_points_are_joined_by_straight_lines() -> None:
    found = STEPS.of(np.array([-3.0, -0.5, -0.25, 0.0, 0.1, 0.625, 9.0]))
    np.testing.assert_allclose(found, [0.0, 0.0, 0.0625, 0.125, 0.125, 0.4375, 0.75])


def test_without_a_fit_scores_are_moved_into_their_place_and_are_called_that() -> None:
    found = UNCALIBRATED.of(np.array([[-1.0, 0.0], [0.5, 2.0]]))
    assert found.tolist() == [pytest.approx([0.268941, 0.5], abs=1e-6), pytest.approx([0.622459, 0.880797], abs=1e-6)]
    assert UNCALIBRATED.name == "1 / (1 + exp(-s))"
    above = UNCALIBRATED.of(np.array([1.0, 1.3, 1.6, 9.0]))  # as mapped cosines with the words' share are
    assert (np.diff(above) > 0).all()
    assert above[-1] < 1


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.sampled_from([PLATT, STEPS, Sigmoid()]))
def test_no_map_changes_an_order_or_leaves_its_place(scores: list[float], relevance: Relevance) -> None:
    found = relevance.of(np.sort(np.array(scores)))
    assert (np.diff(found) >= 0).all()
    assert (found >= 0).all()
    assert (found <= 1).all()


def test_words_have_a_map_for_the_weight_that_it_was_fitted_with() -> None:
    assert BOTH.for_weight(None) is BOTH.for_weight(0.0) is PLATT
    assert BOTH.for_weight(float(np.float32(0.3)) - 1e-8) is UNCALIBRATED
    assert BOTH.for_weight(0.3) is STEPS
    assert BOTH.for_weight(0.5) is UNCALIBRATED


@pytest.mark.parametrize("maps", [(PLATT, STEPS), (STEPS, PLATT)])
def test_a_config_tells_it(maps: tuple[FittedMap, FittedMap]) -> None:
    told = Calibration(*maps, 0.3)
    assert read_calibration({"calibration": told.to_json(), "k": "v"}) == told
    assert read_calibration({}) is None


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Platt(0.0, 1.0), "slope"),
        (lambda: Platt(math.nan, 1.0), "slope"),
        (lambda: Platt(1.0, math.inf), "intercept"),
        (lambda: Isotonic((0.0,), (0.5,)), "scores"),
        (lambda: Isotonic(tuple(range(MAX_STEPS + 1)), (0.5,) * (MAX_STEPS + 1)), "scores"),
        (lambda: Isotonic((0.0, 1.0), (0.5,)), "relevances"),
        (lambda: Isotonic((0.0, 0.0), (0.5, 0.6)), "scores"),
        (lambda: Isotonic((0.0, math.nan), (0.5, 0.6)), "scores"),
        (lambda: Isotonic((0.0, 1.0), (0.6, 0.5)), "relevances"),
        (lambda: Isotonic((0.0, 1.0), (0.5, 1.5)), "relevances"),
    ],
)
def test_what_is_no_map_is_refused(make: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"reranker": 1}', '{"reranker": {"kind": "spline"}}'])
def test_what_is_no_calibration_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="calibration: not as resrank calibrate writes it"):
        Calibration.from_json(text)
