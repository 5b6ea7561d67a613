"""A candidate matrix is refused by its first bad vector."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.errors import InvalidInputError
from resrank.serving.candidates import validate_candidates, validate_query_embeddings

BAD = {"contains NaN": math.nan, "contains Inf": -math.inf}


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, dtype=np.float16)


@given(
    rows=st.integers(1, 3),
    count=st.integers(1, 6),
    places=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 3)), max_size=4),
    problem=st.sampled_from([*BAD, "is a zero vector"]),
)
def test_the_first_bad_vector_is_named(rows: int, count: int, places: set[tuple[int, int, int]], problem: str) -> None:
    candidates = ones(rows, count, 4)
    places = {place for place in places if place[0] < rows and place[1] < count}
    for row, index, column in places:
        if problem in BAD:
            candidates[row, index, column] = BAD[problem]
        else:
            candidates[row, index] = 0
    if not places:
        validate_candidates(candidates, max_passages=6, dim=4)
        return
    with pytest.raises(InvalidInputError) as raised:
        validate_candidates(candidates, max_passages=6, dim=4)
    row, index, _ = min(places)
    assert raised.value.field == (f"CANDIDATES[{index}]" if rows == 1 else f"CANDIDATES[{row}][{index}]")
    assert raised.value.problem == problem


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (ones(1, 0, 4), "CANDIDATES: no candidates (limit at least 1, got 0)"),
        (ones(2, 7, 4), "CANDIDATES: too many candidates in one pass (limit 6, got 7)"),
        (ones(1, 6, 5), "CANDIDATES: wrong embedding dimension (limit 4, got 5)"),
    ],
)
def test_shapes(candidates: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        validate_candidates(candidates, max_passages=6, dim=4)
    assert str(raised.value) == message


def test_the_smallest_and_largest_fp16_are_vectors() -> None:
    candidates = np.zeros((1, 2, 4), dtype=np.float16)
    candidates[0, :, 0] = [5.960464477539063e-08, 65504]
    validate_candidates(candidates, max_passages=2, dim=4)


@pytest.mark.parametrize("scale", [1e-13, 1e19])
def test_a_query_beyond_what_fp32_squares_is_refused(scale: float) -> None:
    good = np.array([[2e-12, 0], [9e17, 0], [3, 4]], np.float32)
    validate_query_embeddings(good)
    with pytest.raises(
        InvalidInputError, match=r"QUERY_EMBEDDING\[1\]: length out of range \(limit 1e-12 to 1e\+18, got"
    ):
        validate_query_embeddings(np.array([[1, 0], [scale, 0]], np.float32))
