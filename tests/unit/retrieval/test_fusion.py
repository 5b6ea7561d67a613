from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.retrieval.fusion import reciprocal_rank_fusion

KEYS = st.lists(st.integers(1, 30), unique=True, max_size=20)


def test_hand_worked_example() -> None:
    fused = reciprocal_rank_fusion([np.array([10, 20, 30]), np.array([30, 10, 40])])
    assert [key for key, _ in fused] == [10, 30, 20, 40]
    expected = [1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62, 1 / 63]
    assert [score for _, score in fused] == pytest.approx(expected, abs=1e-15)


def test_ties_go_to_the_list_named_first() -> None:
    assert [key for key, _ in reciprocal_rank_fusion([np.array([5]), np.array([3])])] == [5, 3]


@given(KEYS, KEYS)
def test_every_key_once_and_scores_descend(first: list[int], second: list[int]) -> None:
    fused = reciprocal_rank_fusion([np.array(first, np.int64), np.array(second, np.int64)])
    scores = [score for _, score in fused]
    assert {key for key, _ in fused} == set(first) | set(second)
    assert len(fused) == len(set(first) | set(second))
    assert scores == sorted(scores, reverse=True)


@given(KEYS)
def test_two_equal_lists_keep_their_order(ranking: list[int]) -> None:
    keys = np.array(ranking, np.int64)
    assert [key for key, _ in reciprocal_rank_fusion([keys, keys])] == ranking
