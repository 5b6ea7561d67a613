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
    rows = np.ascontiguousarray(candidates).view(np.dtype((np.void, candidates.itemsize * candidates.shape[1])))[:, 0]
    _, firsts, groups, sizes = np.unique(rows, return_index=True, return_inverse=True, return_counts=True)
    cosines = _units(candidates[firsts]) @ _units(query_embedding)
    by_cosine = np.argsort(-cosines, kind="stable")
    rank = np.empty_like(by_cosine)  # of each group of equal vectors
    rank[by_cosine] = np.arange(len(by_cosine))
    ranks = rank[groups.reshape(-1)]
    starts = np.concatenate([[0], np.cumsum(sizes[by_cosine])[:-1]])
    return CanonicalOrder(np.argsort(ranks, kind="stable").astype(np.int64), starts[ranks].astype(np.int64))


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
    units = _units(candidates)
    count, near = len(units), min(neighbors, len(units))
    values = _mapped(units @ _units(query_embedding), cosine_map)
    itself = np.eye(count, near, dtype=bool)
    found = np.zeros((count, 3 * neighbors + 4))
    found[:, :near] = np.where(itself, 0, _mapped(units @ units[:near].T, cosine_map))
    found[:, neighbors : neighbors + near] = 0.5 * itself
    found[:, 2 * neighbors : 2 * neighbors + near] = values[:near] - values[:, None]
    found[:, -4] = values
    found[:, -3] = values[0]
    if count > 1:
        # A is affine, so the mean over the others needs no matrix of all pairs.
        others = (units @ units.sum(axis=0) - 1) / (count - 1)
        found[:, -2] = _mapped(others, cosine_map)
    found[:, -1] = np.arange(count) / RANK_UNIT
    return found.astype(np.float32)


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
    exact = vectors.astype(np.float64)
    units: Float64 = exact / np.linalg.norm(exact, axis=-1, keepdims=True)
    return units


def _mapped(cosines: Float64, cosine_map: CosineMap | None) -> Float64:
    return cosines if cosine_map is None else cosine_map.apply(cosines)
