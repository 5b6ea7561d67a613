"""All stored vectors in memory, one row each, in the order of their keys."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from resrank.retrieval.records import HalfMatrix, Keys

_Scalar = TypeVar("_Scalar", bound=np.generic)
_FIRST_CAPACITY = 1024


class VectorTable:
    """Keys and vectors, row by row; a removed row stays as a tombstone until the table is rebuilt.

    Keys only grow, so rows are sorted by key, and a row number never changes: it is the vector's number in the FAISS
    index as well. The vectors are kept as stored, since that is what the reranker reads; a compressed FAISS index could
    only give back a reconstruction.
    """

    def __init__(self, keys: Keys, vectors: HalfMatrix, alive: NDArray[np.bool_] | None = None) -> None:
        """Takes over the arrays.

        Args:
            keys: int64 [n], ascending.
            vectors: fp16 [n, d].
            alive: bool [n], False for tombstones; all alive by default.
        """
        self._keys = keys
        self._vectors = vectors
        self._alive = np.ones(len(keys), np.bool_) if alive is None else alive
        self.rows = len(keys)
        self.dead = int(self.rows - self._alive.sum())

    @property
    def dimension(self) -> int:
        """Components of a vector."""
        return self._vectors.shape[1]

    @property
    def keys(self) -> Keys:
        """Keys of all rows, tombstones included."""
        return self._keys[: self.rows]

    @property
    def vectors(self) -> HalfMatrix:
        """Vectors of all rows; a tombstone's is unspecified."""
        return self._vectors[: self.rows]

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
            # Doubling: n additions copy O(n) rows in all.
            capacity = max(_FIRST_CAPACITY, 2 * len(self._keys), end)
            self._keys = _grown(self._keys, capacity)
            self._vectors = _grown(self._vectors, capacity)
            self._alive = _grown(self._alive, capacity)
        self._keys[self.rows : end] = keys
        self._vectors[self.rows : end] = vectors
        self._alive[self.rows : end] = True
        self.rows = end

    def bury(self, keys: Keys) -> None:
        """Makes the rows of live keys tombstones."""
        self._alive[self.rows_of(keys)] = False
        self.dead += len(keys)

    def rows_of(self, keys: Keys) -> NDArray[np.intp]:
        """Row numbers of keys that are in the table."""
        return np.searchsorted(self.keys, keys)

    def gather(self, keys: Keys) -> HalfMatrix:
        """Vectors of keys that are in the table, fp16 [len(keys), d]."""
        return self._vectors[self.rows_of(keys)]

    def compacted(self) -> VectorTable:
        """A new table without the tombstones."""
        return VectorTable(self.keys[self.alive], self.vectors[self.alive])


def _grown(array: NDArray[_Scalar], capacity: int) -> NDArray[_Scalar]:
    grown = np.empty((capacity, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown
