"""The joint score by hand, and that what cannot be one is refused by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.errors import InvalidInputError
from resrank.core.fusion import (
    IDENTITY,
    CosineMap,
    check_lexical_scores,
    check_lexical_weight,
    joint_scores,
    read_cosine_map,
    read_lexical_weight,
)


def test_hand_worked_example() -> None:
    """e5-small's map and the default weight: 4.84 (.80 - .72) + .05 = .4372; BM25 6 of at most 12 adds .15."""
    mapped = CosineMap(4.84, 0.72, 0.05).apply(np.array([0.80, 0.72], np.float32))
    assert mapped == pytest.approx([0.4372, 0.05], abs=1e-6)
    joint = joint_scores(mapped, np.array([6, 0], np.float32), 12.0, 0.3)
    assert joint == pytest.approx([0.5872, 0.05], abs=1e-6)


@pytest.mark.parametrize(("best", "weight"), [(0.0, 0.3), (5.0, 0.0)])
def test_without_words_or_weight_scores_stay_as_they_are(best: float, weight: float) -> None:
    scores = np.array([0.25, -1], np.float32)
    assert joint_scores(scores, np.zeros(2, np.float32), best, weight).tolist() == [0.25, -1]


@given(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32), st.floats(1e-3, 1000), st.floats(-1, 1))
def test_the_map_never_changes_an_order(first: float, second: float, slope: float, center: float) -> None:
    mapped = CosineMap(slope, center, 0.0).apply(np.array(sorted([first, second]), np.float32))
    assert mapped[0] <= mapped[1]


def test_a_config_without_the_parameters_means_the_identity_and_the_default() -> None:
    assert (read_cosine_map({}), read_lexical_weight({})) == (IDENTITY, 0.3)
    parameters = {"cosine_map": CosineMap(2, 0.5, -1).to_json(), "lexical_weight": "0.75"}
    assert (read_cosine_map(parameters), read_lexical_weight(parameters)) == (CosineMap(2, 0.5, -1), 0.75)


@pytest.mark.parametrize(
    "weight", [-0.1, 10.1, math.nan, math.inf, "0.3", True, None, pytest.param(10**5000, id="huge")]
)
def test_weights_that_cannot_be_are_refused(weight: float) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_lexical_weight(weight)
    assert caught.value.field == "lexical_weight"


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ([1.0, 2.0], "lexical_scores: not as many as candidates (limit 3, got 2)"),
        ([[1.0, 2.0, 3.0]], "lexical_scores: not as many as candidates (limit 3, got 1x3)"),
        ([1.0, -2.0, 3.0], "lexical_scores[1]: must be a number from 0 on (limit 0, got -2.0)"),
        ([1.0, 2.0, math.nan], "lexical_scores[2]: must be finite (limit 0, got nan)"),
        ([math.inf, 2.0, 3.0], "lexical_scores[0]: must be finite (limit 0, got inf)"),
        (["a", "b", "c"], "lexical_scores: must be numbers of at most 64 bits, not <U1"),
        ([[1.0], [2.0, 3.0]], "lexical_scores: must be numbers"),
        pytest.param([10**400, 2.0, 3.0], "lexical_scores: must be numbers of at most 64 bits, not object", id="huge"),
        (np.array([1 + 2j, 0, 0]), "lexical_scores: must be numbers of at most 64 bits, not complex128"),
        (
            np.zeros(3, "M8[D]"),
            "lexical_scores: must be numbers of at most 64 bits, not datetime64[D]",
        ),
        (np.array([True, False, True]), "lexical_scores: must be numbers of at most 64 bits, not bool"),
    ],
)
def test_lexical_scores_that_cannot_be_are_refused(scores: list[float], sentence: str) -> None:
    assert check_lexical_scores([0, 1, 2.5], 3).tolist() == [0, 1, 2.5]
    with pytest.raises(InvalidInputError) as caught:
        check_lexical_scores(scores, 3)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"slope": 0.0}, "cosine_map.slope"),
        ({"slope": math.nan}, "cosine_map.slope"),
        ({"center": math.inf}, "cosine_map.center"),
        ({"offset": -2000.0}, "cosine_map.offset"),
    ],
)
def test_maps_that_are_none_are_refused(fields: dict[str, float], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        CosineMap(**{"slope": 1.0, "center": 0.0, "offset": 0.0, **fields})
    assert caught.value.field == field
