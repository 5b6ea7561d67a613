"""All stored vectors, one row each, in the order of their keys."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from resrank.retrieval.local.checksums import Checksums, damaged, of_vectors
from resrank.retrieval.local.vector_segment import VectorSegment, lengths
from resrank.retrieval.records import FloatVector, HalfMatrix, Keys

_Scalar = TypeVar("_Scalar", bound=np.generic)
_FIRST_CAPACITY = 1024
_ROWS_AT_ONCE = 1024
"""Their fp32 copy stays in a core's cache: 16 times as many take 1.7 times as long each."""


class VectorTable:
    """Keys and vectors, row by row; a removed row stays as a tombstone until the table is rebuilt.

    Keys only grow, so rows are sorted by key, and a row number never changes: it is the vector's number in the FAISS
    index as well. The vectors are kept as stored, since that is what the reranker reads; a compressed FAISS index could
    only give back a reconstruction. Those that a snapshot has are mapped from it, so that the kernel keeps in memory
    what is read of them; those added since are in this process's own.
    """

    def __init__(
        self,
        keys: Keys,
        base: VectorSegment,
        alive: NDArray[np.bool_] | None = None,
        checksums: Checksums | None = None,
    ) -> None:
        """Takes over the arrays.

        Args:
            keys: int64 [n], ascending.
            base: Their vectors.
            alive: bool [n], False for tombstones; all alive by default.
            checksums: uint32 [n]: of the vectors, which are then compared with them when they are given out.
        """
        self.base = base
        self.tail = VectorSegment.empty(base.vectors.shape[1], 0)
        self._checksums = checksums
        self._keys = keys
        self._alive = np.ones(len(keys), np.bool_) if alive is None else alive
        self.rows = len(keys)
        self.dead = int(self.rows - self._alive.sum())

    @property
    def dimension(self) -> int:
        """Components of a vector."""
        return self.base.vectors.shape[1]

    @property
    def keys(self) -> Keys:
        """Keys of all rows, tombstones included."""
        return self._keys[: self.rows]

    @property
    def segments(self) -> tuple[VectorSegment, VectorSegment]:
        """The vectors of all rows: the base and what came after it; a tombstone's is unspecified."""
        return self.base, self.tail

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Which rows are no tombstones."""
        return self._alive[: self.rows]

    def append(self, keys: Keys, vectors: HalfMatrix) -> None:
        """Adds rows.

        Args:
            keys: Ascending, and greater than every key in the table.
            vectors: fp16 [len(keys), d].
        """
        end = self.rows + len(keys)
        if end > len(self._keys):
            capacity = max(_FIRST_CAPACITY, 2 * len(self._keys), end)
            self._keys = _grown(self._keys, capacity)
            self._alive = _grown(self._alive, capacity)
        self.tail = self.tail.extended(vectors)
        self._keys[self.rows : end] = keys
        self._alive[self.rows : end] = True
        self.rows = end

    def bury(self, keys: Keys) -> None:
        """Makes the rows of live keys tombstones."""
        self._alive[self.rows_of(keys)] = False
        self.dead += len(keys)

    def rows_of(self, keys: Keys) -> NDArray[np.intp]:
        """Row numbers of keys that are in the table."""
        return np.searchsorted(self.keys, keys)

    def vectors_of(self, rows: NDArray[np.signedinteger[Any]]) -> HalfMatrix:
        """Vectors by row number, fp16 [len(rows), d]."""
        vectors: HalfMatrix
        if not self.tail.rows:
            vectors = self.base.vectors[rows]
            return vectors
        vectors = np.empty((len(rows), self.dimension), np.float16)
        of_tail = rows >= self.base.rows
        vectors[~of_tail] = self.base.vectors[rows[~of_tail]]
        vectors[of_tail] = self.tail.vectors[rows[of_tail] - self.base.rows]
        return vectors

    def gather(self, keys: Keys) -> HalfMatrix:
        """Vectors of keys that are in the table, fp16 [len(keys), d], exactly as they were given.

        Raises:
            RetrievalError: One in the snapshot is not any more what it was.
        """
        rows = self.rows_of(keys)
        vectors = self.vectors_of(rows)
        if self._checksums is not None:
            of_base = rows < self.base.rows
            differ = of_vectors(vectors[of_base]) != self._checksums[rows[of_base]]
            if differ.any():
                raise damaged(f"the vector of record {keys[of_base][differ][0]}")
        return vectors

    def cosines(self, query: FloatVector, rows: NDArray[np.signedinteger[Any]]) -> FloatVector:
        """Cosines of a query, fp32 [d], of length 1, with rows, fp32 [len(rows)]; whatever the other rows are."""
        cosines: FloatVector = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            vectors = self.vectors_of(rows[part]).astype(np.float32)
            norms = lengths(vectors)
            # Not BLAS, whose sums depend on where in the matrix a row stands.
            cosines[part] = np.einsum("nd,d->n", vectors, query) / np.where(norms > 0, norms, 1)
        return cosines

    def compacted(self) -> VectorTable:
        """A new table without the tombstones, in memory of its own."""
        rows = np.flatnonzero(self.alive)
        base = VectorSegment.empty(self.dimension, len(rows))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            base.vectors[part] = self.vectors_of(rows[part])
        return VectorTable(self.keys[rows], base)


def _grown(array: NDArray[_Scalar], capacity: int) -> NDArray[_Scalar]:
    grown = np.empty((capacity, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown
