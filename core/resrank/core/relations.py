"""What a passage has to do with the query and the other passages: cosines, in this one place for all parts.

    v_i = A(cos(e_q, e_i))        (1) .. (N): the passages by descending v, the canonical order

    r_i = [ A(cos(e_i, e_(k)))  k = 1 .. K, 0 where (k) = i
            1/2 where (k) = i, else 0
            v_(k) - v_i
            v_i
            v_(1)
            mean over j != i of A(cos(e_i, e_j))
            (rank of i, from 0) / 50 ]                                      in R^(3K + 4)

Columns of neighbours that a list of fewer than K does not have are 0. A is the checkpoint's map of cosines
(:class:`resrank.core.fusion.CosineMap`), so that one scale holds whatever the encoder.

Vectors are the stored ones, brought to length 1 again; all is computed in fp64 and rounded to fp32 at the end.

The order in which candidates come must not matter, to the last bit. Floats are added in an order that depends on where
a row stands, so rows are first put in the order of their bytes, and all that is computed is computed on that array.
Ties of v keep the order of bytes, and equal vectors share the score of the first of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from resrank.core.scoring import Float32

if TYPE_CHECKING:  # the client, which orders long lists, has no pydantic
    from resrank.core.fusion import CosineMap

Float16 = NDArray[np.float16]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

RANK_UNIT = 50
"""Ranks enter as shares of this, so that those of a usual list lie where the cosines do."""


@dataclass(frozen=True)
class CanonicalOrder:
    """How one list is put into canonical order, and its scores back into the caller's.

    Attributes:
        order: INT64 [N], the caller's index of the candidate at each place.
        places: INT64 [N], the place whose score belongs to each of the caller's candidates. Where vectors are equal
            that is the first of them.
    """

    order: Int64
    places: Int64

    @classmethod
    def as_given(cls, count: int) -> Self:
        """Of a list that is read in the order in which it comes."""
        return cls(np.arange(count, dtype=np.int64), np.arange(count, dtype=np.int64))


def canonical_order(query_embedding: Float32, candidates: Float16) -> CanonicalOrder:
    """Orders candidates by descending cosine with the query, ties by their bytes.

    Args:
        query_embedding: FP32 [d], e_q.
        candidates: FP16 [N, d], e_i as stored, N at least 1.
    """
    return _Sorted.by_cosine(_units(query_embedding), candidates).canonical


def relations(
    query_embedding: Float32, candidates: Float16, *, neighbors: int, cosine_map: CosineMap | None
) -> Float32:
    """Computes r_i of one list.

    Args:
        query_embedding: FP32 [d], e_q.
        candidates: FP16 [N, d], e_i as stored, in canonical order.
        neighbors: K.
        cosine_map: A; None for the identity.

    Returns:
        FP32 [N, 3K + 4], in the same order.
    """
    return _relations(_units(query_embedding), _units(candidates), neighbors, cosine_map)


def ordered_relations(
    query_embedding: Float32, candidates: Float16, *, neighbors: int, cosine_map: CosineMap | None
) -> tuple[CanonicalOrder, Float32]:
    """:func:`canonical_order` and the :func:`relations` of the list so ordered, with vectors normalised once for both.

    Args:
        query_embedding: FP32 [d], e_q.
        candidates: FP16 [N, d], e_i as stored, N at least 1, in any order.
        neighbors: K.
        cosine_map: A; None for the identity.

    Returns:
        The order, and FP32 [N, 3K + 4] in that order.
    """
    query = _units(query_embedding)
    found = _Sorted.by_cosine(query, candidates)
    # A vector's length is a sum over its own numbers: it has the same bits wherever the vector stands.
    return found.canonical, _relations(query, found.units.take(found.kinds, axis=0), neighbors, cosine_map)


@dataclass(frozen=True)
class _Sorted:
    """One list in canonical order, and what was computed to find that.

    Attributes:
        canonical: The order.
        units: FP64 [M, d], the list's different vectors in the order of their bytes, of length 1.
        kinds: INT64 [N], which of them stands at each place of the order.
    """

    canonical: CanonicalOrder
    units: Float64
    kinds: Int64

    @classmethod
    def by_cosine(cls, query: Float64, candidates: Float16) -> Self:
        rows = np.ascontiguousarray(candidates).view(np.dtype((np.void, candidates.itemsize * candidates.shape[1])))
        by_bytes = np.argsort(rows[:, 0], kind="stable")
        rows = rows[by_bytes, 0]
        is_first = np.ones(len(rows), dtype=bool)  # of those that are equal
        is_first[1:] = rows[1:] != rows[:-1]
        kinds = np.cumsum(is_first) - 1
        units = _units(candidates[by_bytes[is_first]])
        by_cosine = np.argsort(-(units @ query)[kinds], kind="stable")
        order = by_bytes[by_cosine]
        starts = np.where(is_first[by_cosine], np.arange(len(order)), 0)
        places = np.empty_like(order)
        places[order] = np.maximum.accumulate(starts)
        canonical = CanonicalOrder(order.astype(np.int64, copy=False), places.astype(np.int64, copy=False))
        return cls(canonical, units, kinds[by_cosine])


def _relations(query: Float64, units: Float64, neighbors: int, cosine_map: CosineMap | None) -> Float32:
    count, near = len(units), min(neighbors, len(units))
    values = _mapped(units @ query, cosine_map)
    itself = np.arange(near)
    found = np.zeros((count, 3 * neighbors + 4), np.float32)  # each number is rounded as it is written
    found[:, :near] = _mapped(units @ units[:near].T, cosine_map)
    found[itself, itself] = 0
    found[itself, neighbors + itself] = 0.5
    found[:, 2 * neighbors : 2 * neighbors + near] = values[:near] - values[:, None]
    found[:, -4] = values
    found[:, -3] = values[0]
    if count > 1:
        # A is affine, so the mean over the others needs no matrix of all pairs.
        others = (units @ units.sum(axis=0) - 1) / (count - 1)
        found[:, -2] = _mapped(others, cosine_map)
    found[:, -1] = np.arange(count) / RANK_UNIT
    return found


def without_neighbors(rows: Float32, neighbors: int) -> Float32:
    """Relations to the query alone: what two passages have with each other is 0.

    Args:
        rows: FP32 [N, 3K + 4] of :func:`relations`.
        neighbors: K.

    Returns:
        FP32 [N, 3K + 4].
    """
    left = rows.copy()
    left[:, :neighbors] = 0
    left[:, -2] = 0
    return left


def padded_relations(rows: Sequence[Float32], width: int) -> Float32:
    """Stacks lists of unequal length, each padded as :func:`resrank.core.prompt.pad_candidates` pads vectors.

    Args:
        rows: FP32 [N, 3K + 4] of each list.
        width: N', at least the longest list's N.

    Returns:
        FP32 [B, N', 3K + 4].
    """
    return np.stack([np.pad(row, ((0, width - len(row)), (0, 0)), mode="edge") for row in rows])


def _units(vectors: Float32 | Float16) -> Float64:
    """Of length 1, FP64 [..., d]."""
    units = vectors.astype(np.float64)
    units /= np.linalg.norm(units, axis=-1, keepdims=True)
    return units


def _mapped(cosines: Float64, cosine_map: CosineMap | None) -> Float64:
    return cosines if cosine_map is None else cosine_map.apply(cosines)
