"""The index that misses nothing: it scans the fp16 vectors where they lie, and compares in fp32 what comes near."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from resrank.retrieval.local.vector_segment import UNIT_DEVIATION, VectorSegment, lengths
from resrank.retrieval.local.vector_table import VectorTable
from resrank.retrieval.records import FloatVector

Rows = NDArray[np.int64]

_DEVIATION = UNIT_DEVIATION + 1e-5
"""How far what a scan says may be from a cosine: it takes a vector's length for 1, or rounds a vector of that length,
and adds up in fp32."""

_MORE = 16
_MORE_SHARE = 8
"""A scan is asked for these more than are wanted, and for one more of so many, so that as a rule one is enough."""

_ROWS_AT_ONCE = 16_384
_kinds: Any = faiss  # its type stubs lack what selects


class FlatIndex:
    """Exact nearest neighbours among the rows of a :class:`VectorTable`, without a copy of them.

    Vectors of another length than 1 are the exception: of a segment that has one, a normalised fp16 copy is scanned.
    """

    def __init__(self, table: VectorTable) -> None:
        self._table = table
        self._scans = [_Scan(segment) for segment in table.segments]

    def follow(self) -> None:
        """Takes in rows that were added to the table; must run alone."""
        self._scans[1] = self._scans[1].extended(self._table.tail)

    def search(self, query: FloatVector, k: int, mask: NDArray[np.bool_], count: int) -> tuple[Rows, FloatVector]:
        """Finds the k best rows, at least, of those that count; equals of the k-th best are all among them.

        Args:
            query: fp32 [d], of length 1.
            k: How many are wanted, at least 1 and at most ``count``.
            mask: bool [table.rows]: which rows count.
            count: How many do.

        Returns:
            Rows and cosines, in no order.
        """
        fetched = min(k + k // _MORE_SHARE + _MORE, count)
        found = [scan.nearest(query, fetched, part) for scan, part in self._parts(mask)]
        rows = np.concatenate([rows + base for (_, rows), base in zip(found, self._bases, strict=True)])
        cosines = self._table.cosines(query, rows)
        if len(rows) == count:
            return rows, cosines
        # What a scan left out scores no more than the last of what it found, if that was all that it was asked for.
        left_out = max((float(scores[-1]) for scores, _ in found if len(scores) == fetched), default=-np.inf)
        worst = float(np.partition(cosines, -k)[-k])
        if left_out + _DEVIATION < worst:
            return rows, cosines
        near = [scan.above(query, worst - _DEVIATION, part) for scan, part in self._parts(mask)]
        rows = np.concatenate([rows + base for rows, base in zip(near, self._bases, strict=True)])
        return rows, self._table.cosines(query, rows)

    def _parts(self, mask: NDArray[np.bool_]) -> list[tuple[_Scan, NDArray[np.bool_]]]:
        end = self._table.base.rows
        return list(zip(self._scans, (mask[:end], mask[end:]), strict=True))

    @property
    def _bases(self) -> tuple[int, int]:
        return 0, self._table.base.rows


class _Scan:
    """FAISS over one segment."""

    def __init__(self, segment: VectorSegment) -> None:
        self._segment = segment  # whose memory FAISS reads
        self._in_place = segment.unit  # which it may not be any more when there are more rows
        if self._in_place:
            self._index = segment.in_place()
            return
        dimension = segment.vectors.shape[1]
        self._index = _kinds.IndexScalarQuantizer(dimension, _kinds.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        for start in range(0, segment.rows, _ROWS_AT_ONCE):
            self._index.add(normalised(segment.vectors[start : start + _ROWS_AT_ONCE]))

    def extended(self, segment: VectorSegment) -> _Scan:
        """Over the same rows and more; this one must not be used again."""
        if self._in_place:
            return _Scan(segment)
        self._index.add(normalised(segment.vectors[self._index.ntotal :]))
        self._segment = segment
        return self

    def nearest(self, query: FloatVector, k: int, mask: NDArray[np.bool_]) -> tuple[FloatVector, Rows]:
        if not self._index.ntotal:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        scores, rows = self._index.search(query[np.newaxis], min(k, self._index.ntotal), params=_selecting(mask))
        found = rows[0] >= 0  # -1 stands where no more count
        return scores[0][found], rows[0][found]

    def above(self, query: FloatVector, score: float, mask: NDArray[np.bool_]) -> Rows:
        if not self._index.ntotal:
            return np.empty(0, np.int64)
        rows: Rows
        _, _, rows = self._index.range_search(query[np.newaxis], score, params=_selecting(mask))
        return rows


def normalised(vectors: NDArray[np.float16]) -> NDArray[np.float32]:
    """Fp32 rows of length 1; a zero row stays zero."""
    rows = vectors.astype(np.float32)
    norms = lengths(rows)[:, np.newaxis]
    rows /= np.where(norms > 0, norms, 1)
    return rows


def _selecting(mask: NDArray[np.bool_]) -> Any | None:
    if mask.all():
        return None
    return _kinds.SearchParameters(sel=_kinds.IDSelectorBitmap(np.packbits(mask, bitorder="little")))
