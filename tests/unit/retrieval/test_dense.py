from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError
from resrank.retrieval.local.dense import FaissDenseIndex
from resrank.retrieval.local.kept_rows import KeptRows
from resrank.retrieval.local.vector_segment import VectorSegment
from resrank.retrieval.local.vector_table import VectorTable

NOTHING = np.empty(0, np.int64)


def half(shape: tuple[int, int], seed: int = 0) -> NDArray[np.float16]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float16)


def build(vectors: NDArray[np.float16], factory: str = "Flat", parameters: str = "") -> FaissDenseIndex:
    return FaissDenseIndex.build(
        factory, parameters, VectorTable(np.arange(1, len(vectors) + 1), VectorSegment.of(vectors))
    )


def unit(vector: NDArray[np.floating]) -> NDArray[np.float32]:
    wide = vector.astype(np.float64)
    return (wide / np.linalg.norm(wide)).astype(np.float32)


def cosines(vectors: NDArray[np.float16], query: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    return wide @ query.astype(np.float64) / np.linalg.norm(wide, axis=1)


@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 99))
def test_flat_is_brute_force(rows: int, k: int, seed: int) -> None:
    vectors = half((rows, 12), seed)
    query = unit(np.random.default_rng(seed + 1).normal(size=12))
    keys, scores = build(vectors).search(query, k)
    expected = np.sort(cosines(vectors, query))[::-1][:k]
    assert len(keys) == min(k, rows)
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    np.testing.assert_allclose(cosines(vectors, query)[keys - 1], expected, atol=2e-6)


@given(st.data())
def test_removed_vectors_are_never_found_and_the_rest_always(data: st.DataObject) -> None:
    vectors = half((40, 6))
    dense = build(vectors)
    removed = np.array(sorted(data.draw(st.sets(st.integers(1, 40), max_size=39))), np.int64)
    dense.apply(removed, NOTHING, np.empty((0, 6), np.float16))
    query = unit(vectors[data.draw(st.integers(0, 39))])
    keys, _ = dense.search(query, 40)
    living = np.setdiff1d(np.arange(1, 41), removed)
    assert sorted(keys.tolist()) == living.tolist()
    top, _ = dense.search(query, 1)
    assert cosines(vectors, query)[top[0] - 1] == pytest.approx(cosines(vectors, query)[living - 1].max(), abs=1e-6)


@given(st.data())
def test_equal_cosines_go_by_key_and_a_shorter_answer_is_the_beginning_of_a_longer(data: st.DataObject) -> None:
    distinct = half((5, 6))
    places = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=300))
    dense = build(distinct[places])
    query = unit(distinct[data.draw(st.integers(0, 4))])
    every, scores = dense.search(query, len(places))
    assert every.tolist() == sorted(every.tolist(), key=lambda key: (-scores[every.tolist().index(key)], key))
    k = data.draw(st.integers(1, len(places)))
    keys, cosines_found = dense.search(query, k)
    assert keys.tolist() == every.tolist()[:k]
    assert cosines_found.tolist() == scores.tolist()[:k]


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "SQ8"])
def test_cosines_of_keys_are_those_of_the_stored_vectors_and_of_a_search(factory: str) -> None:
    vectors = half((300, 24))
    dense = build(vectors, factory)
    query = unit(half((1, 24), 9)[0])
    keys, found = dense.search(query, 40)
    np.testing.assert_allclose(found, cosines(vectors, query)[keys - 1], atol=2e-6)
    assert dense.cosines(query, keys).tolist() == found.tolist()
    assert dense.cosines(query, keys[::-1]).tolist() == found.tolist()[::-1]
    assert dense.cosines(query, NOTHING).tolist() == []


def test_tombstones_nearest_to_the_query_do_not_crowd_out_the_living() -> None:
    near, far = np.tile(half((1, 6)), (500, 1)), half((500, 6), 1)
    dense = build(np.concatenate([near, far]))
    dense.apply(np.arange(1, 501), NOTHING, np.empty((0, 6), np.float16))
    keys, _ = dense.search(unit(near[0]), 50)
    assert len(keys) == 50
    assert keys.min() > 500


def test_vectors_come_back_bit_for_bit() -> None:
    vectors = half((2000, 6))
    dense = build(vectors, "SQ8")
    added = half((30, 6), 2)
    dense.apply(np.array([3, 5]), np.arange(2001, 2031), added)
    wanted = np.array([2030, 1, 2000, 2001])
    expected = np.stack([added[29], vectors[0], vectors[1999], added[0]])
    assert dense.gather(wanted).tobytes() == expected.tobytes()


def test_too_many_tombstones_ask_for_a_rebuild_that_drops_them() -> None:
    vectors = half((3000, 6))
    dense = build(vectors)
    dense.apply(np.arange(1, 1002), NOTHING, np.empty((0, 6), np.float16))
    assert dense.needs_rebuild()
    fresh = dense.rebuilt()
    assert (fresh.table.rows, fresh.table.dead, fresh.needs_rebuild()) == (1999, 0, False)
    query = unit(vectors[2000])
    assert fresh.search(query, 10)[0].tolist() == dense.search(query, 10)[0].tolist()
    assert fresh.gather(np.array([2001])).tobytes() == vectors[2000].tobytes()


def test_graph_index_finds_and_forgets() -> None:
    vectors = half((800, 16))
    dense = build(vectors, "HNSW16", "efSearch=200")
    hits = sum(dense.search(unit(vector), 1)[0][0] == row + 1 for row, vector in enumerate(vectors[:100]))
    assert hits >= 98
    dense.apply(np.arange(1, 101), NOTHING, np.empty((0, 16), np.float16))
    assert all(dense.search(unit(vector), 5)[0].min() > 100 for vector in vectors[:20])


@pytest.mark.parametrize("factory", ["HNSW32", "HNSW8_SQfp16", "HNSW8,RFlat"])
def test_a_graph_that_loses_its_way_among_equals_finds_as_many_as_are_wanted(factory: str) -> None:
    vectors = half((3300, 16))
    vectors[3000:] = vectors[3000]
    exact, dense = build(vectors), build(vectors, factory)
    query = unit(vectors[3000].astype(np.float32) + 0.05)
    for k in (400, 3300, 5000):
        keys, scores = dense.search(query, k)
        assert len(keys) == min(k, 3300)
        expected, cosines_expected = exact.search(query, k)
        assert (keys.tolist(), scores.tolist()) == (expected.tolist(), cosines_expected.tolist()), "ties by key"
        every = KeptRows(np.ones(3300, np.bool_), dense.table.keys)
        assert len(dense.search(query, k, every)[0]) == len(keys)


@pytest.mark.parametrize("factory", ["IVF16,Flat", "PCA8,IVF16,SQ8", "IVF16,Flat,RFlat"])
def test_few_lists_do_not_limit_how_many_are_found(factory: str) -> None:
    vectors = half((10_000, 12))
    dense = build(vectors, factory)
    assert dense.description == factory
    query = unit(half((1, 12), 9)[0])
    assert len(dense.search(query, 1000)[0]) == 1000
    dense.apply(np.arange(1, 9001), NOTHING, np.empty((0, 12), np.float16))
    for k in (100, 1000, 1001):
        keys, found = dense.search(query, k)
        assert len(keys) == min(k, 1000)
        assert keys.min() > 9000
    assert keys.tolist() == (9001 + np.argsort(-cosines(vectors[9000:], query), kind="stable")).tolist()
    np.testing.assert_allclose(found, cosines(vectors, query)[keys - 1], atol=2e-6)


def test_an_index_that_knows_distances_alone_finds_the_nearest() -> None:
    """FAISS makes HNSW over product quantizers with L2, whatever it is asked for."""
    vectors = half((600, 8))
    kind = "HNSW16_PQ8x8"
    index: Any = faiss.index_factory(8, kind, faiss.METRIC_INNER_PRODUCT)
    assert index.metric_type == faiss.METRIC_L2
    faiss.downcast_index(index.storage).do_polysemous_training = False  # which takes seconds
    rows = np.stack([unit(vector) for vector in vectors])
    index.train(rows)
    index.add(rows)
    table = VectorTable(np.arange(1, 601), VectorSegment.of(vectors))
    dense, exact = FaissDenseIndex(kind, "", table, index), build(vectors)
    right = sum(
        len(np.intersect1d(dense.search(unit(vector), 10)[0], exact.search(unit(vector), 10)[0]))
        for vector in vectors[:50]
    )
    assert right > 450


def test_trained_index_starts_flat_and_is_trained_when_it_can_be() -> None:
    vectors = half((10_500, 8))
    dense = build(vectors[:9000], "IVF16,Flat", "nprobe=16")
    assert dense.description == "IVF16,Flat (Flat until 9984 vectors)"
    assert not dense.needs_rebuild()
    dense.apply(NOTHING, np.arange(9001, 10_501), vectors[9000:])
    assert dense.needs_rebuild()
    fresh = dense.rebuilt()
    assert fresh.description == "IVF16,Flat"
    assert not fresh.needs_rebuild()
    query = unit(vectors[5])
    # All 16 lists are probed, so the result is exact.
    np.testing.assert_allclose(fresh.search(query, 20)[1], np.sort(cosines(vectors, query))[::-1][:20], atol=2e-6)


@pytest.mark.parametrize("factory", ["Flaaat", "", "PQ7x8", "IVF,"])
def test_unknown_factory_is_refused_by_name(factory: str) -> None:
    with pytest.raises(InvalidInputError, match=r"dense_index: .*refuses"):
        build(half((4, 8)), factory)


def test_unknown_search_parameter_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"dense_search_parameters: .*nonsense=3"):
        build(half((400, 8)), "HNSW8", "nonsense=3")


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat"])
def test_search_parameters_of_another_kind_are_refused_while_a_flat_index_stands_in(factory: str) -> None:
    with pytest.raises(InvalidInputError, match=r"dense_search_parameters: .*efSearch=16"):
        build(half((40, 8)), factory, "efSearch=16")


def test_empty_index_finds_nothing() -> None:
    keys, scores = build(half((0, 8))).search(unit(half((1, 8))[0]), 5)
    assert (len(keys), len(scores)) == (0, 0)
