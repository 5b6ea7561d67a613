from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from resrank.client.ranking import rank_candidates


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]) | st.floats(-1, 1, width=32), min_size=1, max_size=30))
def test_order_is_by_score_descending_and_ties_keep_the_input_order(scores: list[float]) -> None:
    ranked = rank_candidates(np.array(scores, np.float32), np.arange(len(scores)))
    assert [passage.index for passage in ranked] == sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert [passage.rank for passage in ranked] == list(range(1, len(scores) + 1))
    assert all(passage.score == scores[passage.index] for passage in ranked)
    assert all(passage.candidate_rank == passage.index + 1 for passage in ranked)


def test_what_is_known_of_the_candidates_comes_with_them() -> None:
    ranked = rank_candidates(
        np.array([0.1, 0.9], np.float32),
        np.array([1, 3]),
        ids=["a", "b", "c", "d"],
        titles=["A", "B", "C", "D"],
        texts=["1", "2", "3", "4"],
        candidate_scores=np.array([9.0, 8.0, 7.0, 6.0], np.float32),
        dense_scores=np.array([0.5, 0.25, 0.125, 0.0], np.float32),
        lexical_scores=np.array([1, 2, 3, 4], np.float32),
        rerank_scores=np.array([0.0, 0.75], np.float32),
    )
    best, other = ranked
    assert (best.index, best.id, best.title, best.text, best.candidate_rank, best.candidate_score) == (
        *(3, "d", "D", "4"),
        *(4, 6.0),
    )
    assert (best.dense_score, best.lexical_score, best.rerank_score) == (0.0, 4.0, 0.75)
    assert (other.index, other.id, other.rank) == (1, "b", 2)
