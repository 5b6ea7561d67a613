"""The dense index: exact over the stored vectors, or any FAISS index over their normalised copies."""

from __future__ import annotations

import logging
import math
import os
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError
from resrank.retrieval.local.dense_device import DEVIATION, FIELD, MOST_RESULTS, DenseDevice, PlacedIndex, shared_device
from resrank.retrieval.local.flat_index import FlatIndex, normalised
from resrank.retrieval.local.index_kind import (
    PROBE_DIMENSION,
    faiss_threads,
    is_flat,
    new_index,
    set_search_parameters,
    training_points,
)
from resrank.retrieval.local.kept_rows import KeptRows
from resrank.retrieval.local.vector_table import VectorTable
from resrank.retrieval.records import FloatVector, HalfMatrix, Keys

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 16_384  # bounds the fp32 copy of the fp16 vectors while they are added
_SCANNED = 0.005
"""Of all rows: where a filter keeps no more, all that it keeps are compared, whatever the kind of index."""
_SCANNED_BESIDE_GRAPH = 0.1
"""The same of a graph, which is lost among the few: where one of a hundred was kept, it took 200 ms for what comparing
takes one."""
_WIDER = 4
"""So many times as much is asked of an index that has found too few."""
_ROUNDING = 1e-5
"""How far what FAISS computes of a normalised copy in fp32 may be from a cosine."""
_REBUILD_ROWS = 1000
_REBUILD_SHARE = 0.2


class FaissDenseIndex:
    """A FAISS index whose vector numbers are the rows of a :class:`VectorTable`.

    Removal leaves a tombstone, for every kind of index alike (graph indexes cannot remove at all): searches fetch more
    and skip the tombstones, and :meth:`needs_rebuild` says when there are too many. A kind that must be trained starts
    as a flat index and asks for a rebuild once there is enough to train on.
    """

    def __init__(
        self,
        factory: str,
        search_parameters: str,
        table: VectorTable,
        index: Any | None,
        device: DenseDevice | None = None,
        placed: PlacedIndex | None = None,
    ) -> None:
        """Takes over a table and the index over it; use :meth:`build` to make the index.

        Args:
            factory: FAISS index_factory string.
            search_parameters: FAISS search-time parameters, for instance ``nprobe=16``; empty for none.
            table: The vectors.
            index: FAISS index with one vector per row of the table; None for a flat one, which needs none.
            device: The GPU that searches too; None for the CPU alone.
            placed: The index there; None to place it.

        Raises:
            InvalidInputError: FAISS refuses the parameters, or the GPU the index.
        """
        self.factory = factory
        self.table = table
        self.index = index
        self._search_parameters = search_parameters
        self._flat = FlatIndex(table) if index is None else None
        self._stand_in = index is None and not is_flat(factory, table.dimension)
        if search_parameters:
            # What does not fit is refused while a flat index stands in, too, and not once the kind is trained.
            asked = new_index(factory, table.dimension) if index is None else index
            set_search_parameters(asked, factory, search_parameters)
        self._device = device
        self._placed = self._place(device) if device is not None and placed is None else placed

    @classmethod
    def build(cls, factory: str, search_parameters: str, table: VectorTable, device: DenseDevice | None = None) -> Self:
        """Builds the index over a table without tombstones, training it if it must be and can be.

        Raises:
            InvalidInputError: FAISS does not know the factory string, or not for this dimension.
        """
        index = new_index(factory, table.dimension)
        if isinstance(index, faiss.IndexFlat):
            return cls(factory, search_parameters, table, None, device)
        if not index.is_trained:
            if table.rows < training_points(index):
                return cls(factory, search_parameters, table, None, device)
            rows = np.random.default_rng(0).permutation(table.rows)[: 2 * training_points(index)]
            logger.info("training the dense index", extra={"factory": factory, "vectors": len(rows)})
            with faiss_threads(os.cpu_count() or 1):
                index.train(normalised(table.vectors_of(np.sort(rows))))
        with faiss_threads(os.cpu_count() or 1):
            for segment in table.segments:
                _add(index, segment.vectors)
        return cls(factory, search_parameters, table, index, device)

    @property
    def description(self) -> str:
        """The factory string, and the GPU that searches it, or that a flat index stands in until it can be trained."""
        if not self._stand_in:
            return self.factory if self._placed is None else f"{self.factory} ({self._placed.device.name})"
        return f"{self.factory} (Flat until {training_points(new_index(self.factory, self.table.dimension))} vectors)"

    def search(self, query: FloatVector, k: int, kept: KeptRows | None = None) -> tuple[Keys, FloatVector]:
        """Finds the nearest vectors.

        Args:
            query: fp32 [d], L2-normalised.
            k: How many are wanted.
            kept: The only rows that count; None for all. Of these k are found whenever there are k.

        Returns:
            Keys and cosines of at most k vectors, best first, ties by key. With a flat index the k best of fewer are
            the beginning of the k best of more.
        """
        table = self.table
        count = table.rows - table.dead if kept is None else len(kept.keys)
        wanted = min(k, count)
        if not wanted:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        if kept is None and self._placed is not None:
            found = self._search_placed(self._placed, query, wanted)
            if found is not None:
                return found
        if self._flat is not None and (kept is None or count > _SCANNED * table.rows):
            rows, cosines = self._flat.search(query, wanted, table.alive if kept is None else kept.mask, count)
            return _best(table.keys[rows], cosines, wanted)
        if kept is not None:
            return self._search_kept(query, wanted, kept)
        return self._search_all(query, wanted)

    def _search_placed(self, placed: PlacedIndex, query: FloatVector, wanted: int) -> tuple[Keys, FloatVector] | None:
        """What a GPU finds; None where it does not make sure of the answer."""
        table = self.table
        fetched = min(wanted + min(table.dead, wanted) + wanted // 8 + 16, MOST_RESULTS, table.rows)
        if fetched < wanted:
            return None
        try:
            scores, rows = placed.search(query, fetched)
        except RuntimeError:
            self._leave_device()
            return None
        living = table.alive[rows]
        keys = table.keys[rows[living]]
        if len(keys) < wanted:
            return None
        best = _best(keys, self.cosines(query, keys), wanted)
        if self.exact and fetched < table.rows and scores[-1] + DEVIATION >= best[1][-1]:
            return None
        return best

    def _place(self, device: DenseDevice) -> PlacedIndex:
        try:
            if self.index is not None:
                return device.copy_of(self.index)
            placed = device.flat(self.table.dimension)
            for segment in self.table.segments:
                _add(placed, segment.vectors)
        except RuntimeError as error:
            size = 2 * self.table.dimension * self.table.rows
            raise InvalidInputError(
                FIELD,
                f"{device.name} does not take {self.factory!r} over {self.table.rows} vectors, {size} bytes in fp16: "
                f"{' '.join(str(error).split())}",
            ) from error
        return placed

    def _leave_device(self) -> None:
        """After CUDA failed: whatever is wrong there, the CPU has all that it needs."""
        logger.exception("the GPU failed, the CPU searches alone until the next start")
        self._placed = self._device = None

    def _search_all(self, query: FloatVector, wanted: int) -> tuple[Keys, FloatVector]:
        table, index = self.table, self.index
        assert index is not None
        # Tombstones rank among the living, most of all the old versions of what was just replaced. One more than wanted
        # shows whether the last place is shared: FAISS keeps any of those that are equal.
        fetched = min(wanted + min(table.dead, wanted) + 1, table.rows)
        parameters = None
        while True:
            scores, rows = index.search(query[np.newaxis], fetched, params=parameters)
            if index.metric_type == faiss.METRIC_L2:  # of vectors of length 1 that is the same order (HNSW over PQ)
                scores = -scores
            found = rows[0] >= 0  # an approximate index pads with -1 where it finds no more, though there may be
            living = np.zeros_like(found)
            living[found] = table.alive[rows[0][found]]
            keys, cosines = table.keys[rows[0][living]], scores[0][living]
            complete = fetched >= table.rows or not found[-1]
            if complete and len(keys) < wanted:
                parameters = self._wider(parameters)
                if parameters is None:
                    return self._compared(query, wanted, KeptRows(table.alive, table.keys[table.alive]))
                continue
            if complete or (len(keys) > wanted and scores[0][-1] < cosines[wanted - 1]):
                break
            fetched = min(_WIDER * fetched, table.rows)
        if len(keys) > wanted:
            keys, cosines = keys[cosines >= cosines[wanted - 1]], cosines[cosines >= cosines[wanted - 1]]
        return _best(keys, self.cosines(query, keys), wanted)

    def _wider(self, narrower: Any | None) -> Any | None:
        """FAISS's parameters for a search in more inverted lists; None where that has no more of them, or none.

        All lists hold all vectors, and are scanned faster than the vectors are compared here.
        """
        inner = self._inner()
        if not isinstance(inner, faiss.IndexIVF):
            return None
        probed = (inner if narrower is None else narrower).nprobe
        kinds: Any = faiss  # its type stubs know others' arguments
        return None if probed >= inner.nlist else kinds.SearchParametersIVF(nprobe=min(_WIDER * probed, inner.nlist))

    def _search_kept(self, query: FloatVector, wanted: int, kept: KeptRows) -> tuple[Keys, FloatVector]:
        parameters = self._selecting(kept)
        if parameters is not None:
            assert self.index is not None
            _, rows = self.index.search(query[np.newaxis], wanted, params=parameters)
            if rows.min(initial=0) >= 0:  # -1 stands where it found too few
                keys = self.table.keys[rows[0]]
                return _best(keys, self.cosines(query, keys), wanted)
        return self._compared(query, wanted, kept)

    def _compared(self, query: FloatVector, wanted: int, kept: KeptRows) -> tuple[Keys, FloatVector]:
        """The best of some rows, each of which is compared with the query: as exact as a flat index."""
        keys, storage = kept.keys, self._storage()
        if storage is not None:
            keys = keys[_are_largest(_products(storage, query, np.flatnonzero(kept.mask)), wanted, _ROUNDING)]
        return _best(keys, self.cosines(query, keys), wanted)

    def _inner(self) -> Any:
        """The FAISS index behind transforms of the vectors, which hand a search's parameters on."""
        if isinstance(self.index, faiss.IndexPreTransform):
            return faiss.downcast_index(self.index.index)
        return self.index

    def _selecting(self, kept: KeptRows) -> Any | None:
        """FAISS's parameters for a search among some rows, None where they are compared one by one.

        Indexes look at as many kept vectors as they would at vectors without a filter, and what cannot select is not
        asked.
        """
        share = len(kept.keys) / max(1, self.table.rows)
        kinds: Any = faiss  # its type stubs lack what selects, and know others' arguments
        inner = self._inner()
        if share <= (_SCANNED_BESIDE_GRAPH if isinstance(inner, kinds.IndexHNSW) else _SCANNED):
            return None
        selector = kinds.IDSelectorBitmap(np.packbits(kept.mask, bitorder="little"))
        if isinstance(inner, kinds.IndexHNSW):
            return kinds.SearchParametersHNSW(sel=selector, efSearch=math.ceil(inner.hnsw.efSearch / share))
        if isinstance(inner, kinds.IndexIVF):
            return kinds.SearchParametersIVF(sel=selector, nprobe=min(math.ceil(inner.nprobe / share), inner.nlist))
        if isinstance(inner, kinds.IndexScalarQuantizer):
            return kinds.SearchParameters(sel=selector)
        return None

    def _storage(self) -> Any | None:
        """Where FAISS holds the vectors as they are compared, beneath a graph."""
        if isinstance(self.index, faiss.IndexHNSW):
            storage = faiss.downcast_index(self.index.storage)
            return storage if isinstance(storage, faiss.IndexFlat) else None
        return None

    @property
    def exact(self) -> bool:
        """Whether :meth:`search` misses nothing."""
        return self._flat is not None

    def cosines(self, query: FloatVector, keys: Keys) -> FloatVector:
        """Cosines of a query, fp32 [d], L2-normalised, with the stored vectors of live keys, fp32 [len(keys)].

        Equal to the last bit to what :meth:`search` says of the same keys.
        """
        return self.table.cosines(query, self.table.rows_of(keys))

    def gather(self, keys: Keys) -> HalfMatrix:
        """The stored vectors of live keys, fp16 [len(keys), d], exactly as they were given."""
        return self.table.gather(keys)

    def apply(self, removed: Keys, added: Keys, vectors: HalfMatrix) -> None:
        """Removes keys, then adds new ones, which must be greater than every key seen before.

        Unlike the other methods it must run alone.
        """
        self.table.bury(removed)
        if len(added):
            self.table.append(added, vectors)
            if self._flat is not None:
                self._flat.follow()
            else:
                _add(self.index, vectors)
            if self._placed is not None:
                try:
                    _add(self._placed, vectors)
                except RuntimeError:
                    self._leave_device()

    def needs_rebuild(self) -> bool:
        """Whether tombstones cost more than a rebuild, or the index can be trained by now."""
        table = self.table
        if table.dead > max(_REBUILD_ROWS, _REBUILD_SHARE * table.rows):
            return True
        return self._stand_in and table.rows - table.dead >= training_points(new_index(self.factory, table.dimension))

    def rebuilt(self) -> Self:
        """A new index of the same kind without tombstones; this one stays usable meanwhile."""
        self._placed = None  # a GPU need not have room for both: the CPU searches meanwhile
        fresh = type(self).build(self.factory, self._search_parameters, self.table.compacted())
        if self._device is None:
            return fresh
        try:
            return type(self)(self.factory, self._search_parameters, fresh.table, fresh.index, self._device)
        except InvalidInputError:
            self._leave_device()
            return fresh

    def over(self, table: VectorTable) -> Self:
        """The same index over another table of the same rows; this one must not be changed any more."""
        return type(self)(self.factory, self._search_parameters, table, self.index, self._device, self._placed)


def require_device(name: str, factory: str) -> None:
    """Refuses a GPU that is not there, or that cannot have a kind of index.

    Raises:
        InvalidInputError: So it is.
    """
    device = shared_device(name)
    if device is not None:
        device.require_kind(new_index(factory, PROBE_DIMENSION), factory)


def _best(keys: Keys, cosines: FloatVector, count: int) -> tuple[Keys, FloatVector]:
    """The best of what was found, ties by key."""
    largest = _are_largest(cosines, count)
    keys, cosines = keys[largest], cosines[largest]
    best = np.lexsort((keys, -cosines))[:count]
    return keys[best], cosines[best]


def _products(flat: Any, query: FloatVector, rows: NDArray[np.intp]) -> FloatVector:
    """A query's inner products with some rows of a flat index, at least one, fp32 [len(rows)]."""
    products: FloatVector = np.empty(len(rows), np.float32)
    asked, rows = np.ascontiguousarray(query, np.float32), rows.astype(np.int64)
    flat.compute_distance_subset(1, faiss.swig_ptr(asked), len(rows), faiss.swig_ptr(products), faiss.swig_ptr(rows))
    return products


def _are_largest(numbers: FloatVector, count: int, margin: float = 0.0) -> NDArray[np.bool_]:
    """Which are among so many largest, or not below the last one by more than a margin; all where there are no more."""
    if count >= len(numbers):
        return np.ones(len(numbers), np.bool_)
    reached: NDArray[np.bool_] = numbers >= np.partition(numbers, -count)[-count] - margin
    return reached


def _add(index: Any, vectors: HalfMatrix) -> None:
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        index.add(normalised(vectors[start : start + _ROWS_AT_ONCE]))
