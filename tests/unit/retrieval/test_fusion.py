from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.fusion import IDENTITY, CosineMap
from resrank.retrieval.fusion import reciprocal_rank_fusion, weighted_fusion
from resrank.retrieval.matches import LexicalMatches

KEYS = st.lists(st.integers(1, 30), unique=True, max_size=20)


def test_hand_worked_example() -> None:
    keys, scores = reciprocal_rank_fusion([np.array([10, 20, 30]), np.array([30, 10, 40])], 4)
    assert keys.tolist() == [10, 30, 20, 40]
    assert scores.tolist() == pytest.approx([1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62, 1 / 63], abs=1e-8)


def test_ties_go_by_key() -> None:
    assert reciprocal_rank_fusion([np.array([5]), np.array([3])], 2)[0].tolist() == [3, 5]


@given(KEYS, KEYS, st.integers(1, 40))
def test_every_key_once_scores_descend_and_a_shorter_answer_is_the_beginning(
    first: list[int], second: list[int], k: int
) -> None:
    lists = [np.array(first, np.int64), np.array(second, np.int64)]
    keys, scores = reciprocal_rank_fusion(lists, 40)
    assert sorted(keys.tolist()) == sorted(set(first) | set(second))
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert reciprocal_rank_fusion(lists, k)[0].tolist() == keys.tolist()[:k]


@given(KEYS)
def test_two_equal_lists_keep_their_order(ranking: list[int]) -> None:
    keys = np.array(ranking, np.int64)
    assert reciprocal_rank_fusion([keys, keys], 30)[0].tolist() == ranking


# Few distinct values, so that ties are common; eighths, so that sums are exact in any order.
EIGHTHS = st.integers(-8, 8).map(lambda eighths: eighths / 8)
COLLECTIONS = st.lists(st.tuples(EIGHTHS, st.sampled_from([0.0, 0.0, 1.0, 2.0, 4.0])), min_size=1, max_size=40)


@given(
    COLLECTIONS,
    st.integers(1, 45),
    st.sampled_from([0.0, 0.25, 1.0, 8.0]),
    st.sampled_from([IDENTITY, CosineMap(4.0, 0.5, 0.25)]),
)
def test_weighted_fusion_is_the_best_of_the_whole_collection(
    collection: list[tuple[float, float]], k: int, weight: float, cosine_map: CosineMap
) -> None:
    best_word = max(bm25 for _, bm25 in collection)
    joint = {
        key: cosine_map.slope * (cosine - cosine_map.center)
        + cosine_map.offset
        + (weight * bm25 / best_word if best_word else 0.0)
        for key, (cosine, bm25) in enumerate(collection, start=1)
    }
    expected = sorted(joint, key=lambda key: (-joint[key], key))[:k]

    cosines = np.array([cosine for cosine, _ in collection], np.float32)
    nearest = np.lexsort((np.arange(len(cosines)), -cosines))[:k]
    matching = [key for key, (_, bm25) in enumerate(collection, start=1) if bm25]
    matches = LexicalMatches(np.array(matching, np.int64), np.array([collection[key - 1][1] for key in matching]))
    keys, scores = weighted_fusion(
        (nearest + 1, cosines[nearest]),
        matches,
        lambda wanted: cosines[wanted - 1],
        cosine_map,
        weight,
        k,
        highest_unseen=float(cosines[nearest].min()),
    )
    assert keys.tolist() == expected
    assert scores.tolist() == [joint[key] for key in expected]


@given(COLLECTIONS, st.integers(1, 45), st.sets(st.integers(1, 40)), st.sampled_from([0.0, 0.25, 8.0]))
def test_beside_an_approximate_index_it_is_the_best_of_what_was_found_by_vector_or_by_words(
    collection: list[tuple[float, float]], k: int, found: set[int], weight: float
) -> None:
    cosines = np.array([cosine for cosine, _ in collection], np.float32)
    scores = {key: (cosine, bm25) for key, (cosine, bm25) in enumerate(collection, start=1)}
    known = sorted(found & set(scores), key=lambda key: (-scores[key][0], key))[:k]
    matching = [key for key, (_, bm25) in scores.items() if bm25]
    best_word = max((scores[key][1] for key in matching), default=1.0)
    joint = {key: scores[key][0] + weight * scores[key][1] / best_word for key in {*known, *matching}}
    keys, _ = weighted_fusion(
        (np.array(known, np.int64), cosines[np.array(known, np.int64) - 1]),
        LexicalMatches(np.array(matching, np.int64), np.array([scores[key][1] for key in matching])),
        lambda wanted: cosines[wanted - 1],
        IDENTITY,
        weight,
        k,
        highest_unseen=np.inf,
    )
    assert keys.tolist() == sorted(joint, key=lambda key: (-joint[key], key))[:k]


@pytest.mark.parametrize(("weight", "bm25"), [(0.0, 3.0), (0.5, 0.0)])
def test_where_words_do_not_count_no_cosine_is_asked_for(weight: float, bm25: float) -> None:
    cosines = np.linspace(1, 0, 50, dtype=np.float32)
    matches = LexicalMatches(np.arange(20, 50), np.full(30, bm25))

    def none(keys: np.ndarray) -> np.ndarray:
        raise AssertionError(f"{keys} were asked for")

    keys, scores = weighted_fusion(
        (np.arange(10), cosines[:10]), matches, none, IDENTITY, weight, 10, highest_unseen=float(cosines[9])
    )
    assert keys.tolist() == list(range(10))
    assert scores.tolist() == cosines[:10].tolist()


def test_only_cosines_that_could_matter_are_computed() -> None:
    cosines = np.linspace(1, 0, 1001, dtype=np.float32)  # of key 1 to 1001
    bm25 = np.geomspace(100, 0.01, 500)
    matches = LexicalMatches(np.arange(500, 1000), bm25)
    asked: list[int] = []

    def cosines_of(keys: np.ndarray) -> np.ndarray:
        asked.extend(keys.tolist())
        return cosines[keys - 1]

    nearest = np.arange(1, 11), cosines[:10]
    keys, _ = weighted_fusion(nearest, matches, cosines_of, IDENTITY, 0.6, 10, highest_unseen=float(cosines[9]))
    joint = cosines.astype(np.float64)
    joint[499:999] += 0.6 * bm25 / 100
    assert keys.tolist() == (np.argsort(-joint, kind="stable")[:10] + 1).tolist()
    assert len(asked) < 250, "of 500 that match"
