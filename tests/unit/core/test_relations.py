"""Relations against loops written from the definition; their order, and their scores, against shuffled lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.fusion import CosineMap
from resrank.core.relations import canonical_order, ordered_relations, padded_relations, relations

MAP = CosineMap(slope=4.84, center=0.72, offset=0.05)


def vectors(count: int, dim: int, seed: int, *, distinct: int | None = None) -> np.ndarray:
    """FP16 [count, dim] of length about 1, near each other; of only so many kinds."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal(dim) + 0.7 * rng.standard_normal((distinct or count, dim))
    units = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    return units[rng.integers(0, len(units), count)] if distinct else units


def by_loops(query: np.ndarray, candidates: np.ndarray, neighbors: int, cosine_map: CosineMap | None) -> np.ndarray:
    """The definition, one number at a time, for candidates in canonical order."""

    def a(one: np.ndarray, other: np.ndarray) -> float:
        one, other = one.astype(np.float64), other.astype(np.float64)
        cosine = float(one @ other / np.sqrt((one @ one) * (other @ other)))
        return cosine if cosine_map is None else cosine_map.slope * (cosine - cosine_map.center) + cosine_map.offset

    count = len(candidates)
    v = [a(query, candidate) for candidate in candidates]
    rows = []
    for i in range(count):
        near: list[float] = []
        own: list[float] = []
        gaps: list[float] = []
        for k in range(neighbors):
            there = k < count
            near.append(a(candidates[i], candidates[k]) if there and k != i else 0.0)
            own.append(0.5 if k == i else 0.0)
            gaps.append(v[k] - v[i] if there else 0.0)
        others = [a(candidates[i], candidates[j]) for j in range(count) if j != i]
        mean = sum(others) / len(others) if others else 0.0
        rows.append([*near, *own, *gaps, v[i], v[0], mean, i / 50])
    return np.array(rows, np.float32)


def by_parts(
    query: np.ndarray, candidates: np.ndarray, neighbors: int, cosine_map: CosineMap | None
) -> tuple[list[int], list[int], np.ndarray]:
    """Order, places and relations, with the same products of matrices but nothing else shared or spared."""

    def units(rows: np.ndarray) -> np.ndarray:
        exact = rows.astype(np.float64)
        return exact / np.linalg.norm(exact, axis=-1, keepdims=True)

    def a(cosines: np.ndarray) -> np.ndarray:
        return cosines if cosine_map is None else cosine_map.apply(cosines)

    written = [candidate.tobytes() for candidate in candidates]
    kinds = sorted(set(written))
    cosines = units(candidates[[written.index(kind) for kind in kinds]]) @ units(query)
    ranked = dict(zip(kinds, (-cosines).tolist(), strict=True))
    order = sorted(range(len(written)), key=lambda index: (ranked[written[index]], written[index], index))
    ordered = [written[index] for index in order]
    near = units(candidates[order])
    count, most = len(near), min(neighbors, len(near))
    v, itself = a(near @ units(query)), np.eye(count, most)
    rows = np.zeros((count, 3 * neighbors + 4))
    rows[:, :most] = np.where(itself, 0, a(near @ near[:most].T))
    rows[:, neighbors : neighbors + most] = itself / 2
    rows[:, 2 * neighbors : 2 * neighbors + most] = v[:most] - v[:, None]
    mean = a((near @ near.sum(axis=0) - 1) / (count - 1)) if count > 1 else np.zeros(1)
    rows[:, -4:] = np.stack([v, np.full(count, v[0]), mean, np.arange(count) / 50], axis=1)
    return order, [ordered.index(one) for one in written], rows.astype(np.float32)


@pytest.mark.parametrize("cosine_map", [None, MAP], ids=["raw", "mapped"])
@pytest.mark.parametrize(("count", "neighbors"), [(1, 1), (1, 16), (5, 16), (16, 16), (30, 4)])
def test_agrees_with_the_definition_written_as_loops(count: int, neighbors: int, cosine_map: CosineMap | None) -> None:
    candidates, query = vectors(count, 24, 1), vectors(1, 24, 2)[0].astype(np.float32)
    candidates = candidates[canonical_order(query, candidates).order]
    found = relations(query, candidates, neighbors=neighbors, cosine_map=cosine_map)
    assert found.dtype == np.float32
    assert found.shape == (count, 3 * neighbors + 4)
    np.testing.assert_allclose(found, by_loops(query, candidates, neighbors, cosine_map), atol=1e-6)


def test_canonical_order_is_by_cosine_and_equal_vectors_share_a_place() -> None:
    query = np.array([1, 0], np.float32)
    candidates = np.array([[0, 1], [3, 4], [1, 0], [3, 4], [4, 3]], np.float16)  # cosines 0, .6, 1, .6, .8
    order = canonical_order(query, candidates)
    assert order.order.tolist() == [2, 4, 1, 3, 0]
    assert order.places.tolist() == [4, 2, 0, 2, 1]


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 70),
    dim=st.integers(2, 33),
    distinct=st.integers(1, 70),
    neighbors=st.integers(1, 20),
    mapped=st.booleans(),
)
def test_a_shuffled_list_gives_the_same_bits(
    seed: int, count: int, dim: int, distinct: int, neighbors: int, mapped: bool
) -> None:
    candidates = vectors(count, dim, seed, distinct=distinct)
    rng = np.random.default_rng(seed)
    query = rng.standard_normal(dim).astype(np.float32)
    shuffle = rng.permutation(count)
    given_order, shuffled = canonical_order(query, candidates), canonical_order(query, candidates[shuffle])
    canonical, again = candidates[given_order.order], candidates[shuffle][shuffled.order]
    assert canonical.tobytes() == again.tobytes()
    cosine_map = MAP if mapped else None
    features = relations(query, canonical, neighbors=neighbors, cosine_map=cosine_map)
    assert features.tobytes() == relations(query, again, neighbors=neighbors, cosine_map=cosine_map).tobytes()
    # Whatever a pass makes of the places, each candidate gets the same one.
    scores = rng.standard_normal(count).astype(np.float32)
    assert scores[given_order.places][shuffle].tobytes() == scores[shuffled.places].tobytes()


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 110),
    dim=st.sampled_from([2, 9, 33, 128, 384]),
    distinct=st.integers(1, 110),
    neighbors=st.integers(1, 20),
    mapped=st.booleans(),
)
def test_what_is_computed_once_for_order_and_relations_changes_no_bit(
    seed: int, count: int, dim: int, distinct: int, neighbors: int, mapped: bool
) -> None:
    candidates = vectors(count, dim, seed, distinct=distinct)
    query = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    cosine_map = MAP if mapped else None
    order, places, expected = by_parts(query, candidates, neighbors, cosine_map)
    together, found = ordered_relations(query, candidates, neighbors=neighbors, cosine_map=cosine_map)
    alone = canonical_order(query, candidates)
    for one in (together, alone):
        assert one.order.tolist() == order
        assert one.places.tolist() == places
    assert found.tobytes() == expected.tobytes()
    apart = relations(query, candidates[order], neighbors=neighbors, cosine_map=cosine_map)
    assert apart.tobytes() == expected.tobytes()


def test_padding_repeats_the_last_candidate_of_each_list() -> None:
    rows = [np.full((count, 7), count, np.float32) + np.arange(count)[:, None] for count in (1, 3)]
    assert padded_relations(rows, 4)[:, :, 0].tolist() == [[1, 1, 1, 1], [3, 4, 5, 5]]
