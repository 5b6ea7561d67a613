"""A piece of memory full of fp16 vectors, mapped from a file or this process's own, which FAISS scans where it lies."""

from __future__ import annotations

from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from resrank.retrieval.records import HalfMatrix

PREFIX_BYTES = 128
"""Before the first vector: room for what FAISS reads before an index's vectors, so that they begin at a cache line."""

UNIT_DEVIATION = 2.0**-11
"""How far from 1 rounding to fp16 moves the length of a vector of length 1 at most."""

_kinds: Any = faiss  # its type stubs lack what reads an index in place
_ROWS_AT_ONCE = 16_384


class VectorSegment:
    """Rows of fp16 vectors behind a prefix, of which some at the end may be unused yet."""

    def __init__(self, memory: NDArray[np.uint8], dimension: int, rows: int, *, unit: bool | None = None) -> None:
        """Takes over memory.

        Args:
            memory: uint8 [PREFIX_BYTES + capacity * 2 * dimension]; read-only where it is mapped.
            dimension: Components of a vector.
            rows: How many vectors there are.
            unit: Whether all have length 1 but for rounding; None if nobody knows.
        """
        self._memory = memory
        self._dimension = dimension
        self._half: HalfMatrix = memory[PREFIX_BYTES:].view("<f2").reshape(-1, dimension)
        self._unit = unit
        self.rows = rows

    @classmethod
    def empty(cls, dimension: int, rows: int, capacity: int = 0) -> Self:
        """Memory of its own for so many rows, yet to be written, and room for more."""
        size = PREFIX_BYTES + max(rows, capacity) * 2 * dimension
        return cls(np.empty(size, np.uint8), dimension, rows)

    @classmethod
    def of(cls, vectors: HalfMatrix) -> Self:
        """A copy of fp16 [n, d]."""
        segment = cls.empty(vectors.shape[1], len(vectors))
        segment.vectors[:] = vectors
        return segment

    @property
    def vectors(self) -> HalfMatrix:
        """The rows, fp16 [rows, d]."""
        return self._half[: self.rows]

    @property
    def unit(self) -> bool:
        """Whether all vectors have length 1 but for rounding to fp16; zero vectors pass."""
        if self._unit is None:
            self._unit = _are_unit(self.vectors)
        return self._unit

    def extended(self, vectors: HalfMatrix) -> VectorSegment:
        """With more rows, in this memory if it has room, else in twice as much; this one must not be used again."""
        end = self.rows + len(vectors)
        # Doubling: n additions copy O(n) rows in all.
        longer = self if end <= len(self._half) else self.empty(self._dimension, self.rows, max(2 * self.rows, end))
        if longer is not self:
            longer.vectors[:] = self.vectors
        longer._half[self.rows : end] = vectors
        longer._unit = None if self._unit is None else self._unit and _are_unit(vectors)
        longer.rows = end
        return longer

    def in_place(self) -> Any:
        """A FAISS index over the rows as they are, of inner products; this object must outlive it."""
        prefix = prefix_of(self._dimension, self.rows)
        if self._memory.flags.writeable:
            self._memory[:PREFIX_BYTES] = np.frombuffer(prefix, np.uint8)
        begin = PREFIX_BYTES - len(prefix.lstrip(b"\0"))
        used = self._memory[begin : PREFIX_BYTES + self.rows * 2 * self._dimension]
        return _kinds.read_index(_kinds.ZeroCopyIOReader(faiss.swig_ptr(used), used.nbytes))


def prefix_of(dimension: int, rows: int) -> bytes:
    """What stands before so many vectors: FAISS's own form of a flat fp16 index, up to where its codes begin."""
    index = _kinds.IndexScalarQuantizer(dimension, _kinds.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.ntotal = rows
    writer = _kinds.VectorIOWriter()
    faiss.write_index(index, writer)
    written = bytes(faiss.vector_to_array(writer.data))
    size = np.dtype("<u8").itemsize  # of the codes, none of which are in this index: it comes last
    return (written[:-size] + (rows * 2 * dimension).to_bytes(size, "little")).rjust(PREFIX_BYTES, b"\0")


def lengths(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of fp32 [n, d], fp32 [n]: each row's is computed in the same order of additions, whatever stands beside it."""
    found: NDArray[np.float32] = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    return found


def _are_unit(vectors: HalfMatrix) -> bool:
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        found = lengths(vectors[start : start + _ROWS_AT_ONCE].astype(np.float32))
        if (np.abs(found[found > 0] - 1) > UNIT_DEVIATION).any():
            return False
    return True
