"""The store on one machine: SQLite holds the truth, FAISS and FTS5 search it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np

from resrank.core.errors import IndexFolderError, RetrievalError
from resrank.core.filters import Filter, check_filter
from resrank.core.metadata import Metadata
from resrank.retrieval.encoders import require_batch_encoder, require_query_encoder
from resrank.retrieval.finding import NOTHING, Found, StageClock, find
from resrank.retrieval.fusion import Ranked
from resrank.retrieval.local import integrity, lexical, snapshot
from resrank.retrieval.local.database import Change, Database
from resrank.retrieval.local.dense import FaissDenseIndex
from resrank.retrieval.local.dense_device import DenseDevice, shared_device
from resrank.retrieval.local.index_kind import require_usable
from resrank.retrieval.local.kept_rows import KeptRows, kept_rows
from resrank.retrieval.local.lock import FolderLock
from resrank.retrieval.local.rwlock import ReadWriteLock
from resrank.retrieval.local.schema import STORE_FILE, refuse_foreign
from resrank.retrieval.local.vector_segment import VectorSegment
from resrank.retrieval.local.vector_table import VectorTable
from resrank.retrieval.matches import LexicalMatches
from resrank.retrieval.quota import Usage
from resrank.retrieval.records import (
    Encoder,
    FloatVector,
    HalfMatrix,
    IndexDescription,
    Keys,
    RecordBatch,
    SearchHits,
    SearchQuery,
    StoredRecord,
    UpsertCounts,
    WordScores,
)
from resrank.retrieval.settings import CPU

logger = logging.getLogger(__name__)

_SNAPSHOT_ROWS = 10_000
_SNAPSHOT_SHARE = 0.2
_DEEP_FROM = 2_000
"""A cosine costs a microsecond; the 1000 nearest instead of 100 cost a search 1.5 ms (100,000 vectors, 2 cores)."""


class LocalVectorStore:
    """One index folder, owned by this process; implements :class:`resrank.retrieval.store.VectorStore`.

    A search sees all of a batch or nothing of it: searches share a lock that a write holds alone for its commit and for
    the update of the dense index, while the rest of the transaction runs beside the searches.
    """

    def __init__(
        self,
        folder: Path,
        lock: FolderLock,
        database: Database,
        dense_index: str,
        dense_search_parameters: str,
        device: DenseDevice | None,
    ) -> None:
        self._folder = folder
        self._lock = lock
        self._database = database
        self._dense_index = dense_index
        self._dense_search_parameters = dense_search_parameters
        self._device = device
        self._gate = ReadWriteLock()
        self._writing = threading.Lock()
        self._unsaved = 0
        small = (folder / STORE_FILE).stat().st_size <= integrity.CHECKED_FIRST_BYTES
        if small:
            integrity.check(folder)
        self._dense: FaissDenseIndex | None = None
        if database.encoder is not None:
            self._dense = self._load_dense(database.encoder)
        self._check = None if small else integrity.BackgroundCheck(folder)

    @classmethod
    def open(
        cls, folder: Path, *, dense_index: str = "Flat", dense_search_parameters: str = "", dense_device: str = CPU
    ) -> Self:
        """Takes an index folder, creating it if need be, and loads or rebuilds what is derived.

        Args:
            folder: The index folder.
            dense_index: FAISS index_factory string.
            dense_search_parameters: FAISS search-time parameters, for instance ``nprobe=16``; empty for none.
            dense_device: Where vectors are searched: ``cpu``, ``gpu`` or ``gpu:N``.

        Returns:
            The open store.

        Raises:
            IndexFolderError: The folder is corrupt, foreign, not writable or owned by another process.
            InvalidInputError: FAISS does not know ``dense_index`` or ``dense_search_parameters``, or cannot do with
                them what is done here; or there is no such device, or too little memory there.
        """
        require_usable(dense_index, dense_search_parameters)
        device = shared_device(dense_device)
        folder = folder.absolute()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            refuse_foreign(folder)
        except OSError as error:
            raise IndexFolderError(f"index folder {folder} cannot be made or read: {error.strerror}") from error
        lock = FolderLock.acquire(folder)
        try:
            database = Database.open(folder)
            try:
                return cls(folder, lock, database, dense_index, dense_search_parameters, device)
            except BaseException:
                database.close()
                raise
        except BaseException:
            lock.release()
            raise

    def announce(self, address: str, *, transient: bool) -> None:
        """Writes into the lock file where this folder is served, and whether that ends with a command."""
        self._lock.announce(address, transient=transient)

    def close(self) -> None:
        """Saves a snapshot if anything changed and gives the folder back."""
        with self._writing:
            if self._unsaved and self._dense is not None:
                self._saved(self._dense)
            self._release()

    def abandon(self) -> None:
        """Gives back a folder that is to be removed."""
        with self._writing:
            self._release()

    def usage(self) -> Usage:
        """Tells what the index takes, and what it may."""
        with self._gate.read():
            database = self._database
            return Usage(database.encoder, database.record_count, database.bytes, database.quota)

    @contextmanager
    def settled_encoder(self) -> Iterator[Encoder | None]:
        """The encoder that the index belongs to; where that is none yet, no first batch binds it while this is held."""
        encoder = self._database.encoder
        if encoder is not None:  # for good: nobody need wait for a write
            yield encoder
            return
        with self._writing:
            yield self._database.encoder

    def search(self, query: SearchQuery) -> SearchHits:
        """Finds the best records, see :meth:`resrank.retrieval.store.VectorStore.search`."""
        self._require_whole()
        clock = StageClock()
        with self._gate.read():
            encoder = self._database.encoder
            if encoder is not None:
                require_query_encoder(encoder, query)
            found = self._find(query, clock)
            keys = found.keys
            ids, titles, texts, metadata, vectors = clock.run("gather", lambda: self._gather(query, keys))
        return SearchHits(
            ids=ids,
            scores=found.scores,
            cosines=found.cosines,
            bm25=found.bm25,
            best_bm25=found.best_bm25,
            titles=titles,
            texts=texts,
            metadata=metadata,
            vectors=vectors,
            encoder=encoder,
            stage_ms=clock.stage_ms,
        )

    def upsert(self, batch: RecordBatch) -> UpsertCounts:
        """Stores a batch, see :meth:`resrank.retrieval.store.VectorStore.upsert`."""
        self._require_whole()
        with self._writing:
            encoder = self._database.encoder
            if encoder is None:
                # Fails before anything is stored if FAISS cannot have this dimension.
                require_usable(self._dense_index, self._dense_search_parameters, batch.encoder.dimension)
                empty = VectorTable(np.empty(0, np.int64), VectorSegment.empty(batch.encoder.dimension, 0))
                dense = FaissDenseIndex.build(self._dense_index, self._dense_search_parameters, empty, self._device)
            else:
                require_batch_encoder(encoder, batch.encoder)
                assert self._dense is not None
                dense = self._dense
            with self._database.transaction():
                change = self._database.stage_upsert(batch)
                with self._gate.write():
                    self._database.commit(change, batch.encoder)
                    self._dense = dense
                    self._apply(change, batch.encoder)
            self._database.checkpoint()
        return UpsertCounts(inserted=len(change.added) - len(change.removed), updated=len(change.removed))

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Removes records, see :meth:`resrank.retrieval.store.VectorStore.delete`."""
        self._require_whole()
        with self._writing:
            encoder = self._database.encoder
            if encoder is None:
                return list(ids)
            with self._database.transaction():
                change, missing = self._database.stage_delete(ids)
                with self._gate.write():
                    self._database.commit(change, encoder)
                    self._apply(change, encoder)
            self._database.checkpoint()
        return missing

    def get(self, ids: Sequence[str], *, include_texts: bool, include_embeddings: bool) -> dict[str, StoredRecord]:
        """Reads records by id, see :meth:`resrank.retrieval.store.VectorStore.get`."""
        self._require_whole()
        return self._database.get(ids, include_texts=include_texts, include_vectors=include_embeddings)

    def list_ids(self, after: str, limit: int) -> list[str]:
        """Ids page by page, see :meth:`resrank.retrieval.store.VectorStore.list_ids`."""
        self._require_whole()
        return self._database.list_ids(after, limit)

    def word_scores(self, text: str, ids: Sequence[str]) -> WordScores:
        """BM25 of some records, see :meth:`resrank.retrieval.store.VectorStore.word_scores`."""
        self._require_whole()
        with self._gate.read():
            return self._database.word_scores(text, ids)

    def export(self) -> Generator[RecordBatch, None, None]:
        """All records of one moment, see :meth:`resrank.retrieval.store.VectorStore.export`."""
        self._require_whole()
        return self._database.export()

    def describe(self) -> IndexDescription:
        """Tells what the index holds."""
        with self._gate.read():
            return IndexDescription(
                record_count=self._database.record_count,
                encoder=self._database.encoder,
                dense_index=self._dense_index if self._dense is None else self._dense.description,
                lexical_index=lexical.DESCRIPTION,
                path=str(self._folder),
                fields=self._database.fields,
            )

    def maintain(self) -> None:
        """Rebuilds the dense index when it has too many tombstones, and snapshots it when much has changed."""
        with self._writing:
            dense = self._dense
            if dense is None:
                return
            try:
                if dense.needs_rebuild():
                    fresh = dense.rebuilt()  # searches go on with the old one
                    with self._gate.write():
                        self._dense = dense = fresh
                    self._unsaved += fresh.table.rows
                if self._unsaved > max(_SNAPSHOT_ROWS, _SNAPSHOT_SHARE * dense.table.rows):
                    saved = self._saved(dense)
                    with self._gate.write():
                        self._dense = saved
            except Exception:
                # Only what is derived is late; the next write tries again.
                logger.exception("maintenance of the dense index failed")

    def _release(self) -> None:
        if self._check is not None:
            self._check.stop()
        self._database.close()
        self._lock.release()

    def _find(self, query: SearchQuery, clock: StageClock) -> Found:
        dense = self._dense
        if dense is None or not self._database.record_count:
            return NOTHING
        kept = None
        if (condition := query.filter) is not None:
            kept = clock.run("filter", lambda: self._kept(condition, dense))
            if not len(kept.keys):
                return NOTHING
        return find(query, _LocalEngine(query, dense, self._database, kept), clock)

    def _kept(self, condition: Filter, dense: FaissDenseIndex) -> KeptRows:
        check_filter(condition, self._database.fields)
        return kept_rows(condition, dense.table, self._database)

    def _gather(
        self, query: SearchQuery, keys: Keys
    ) -> tuple[list[str], list[str], list[str], list[Metadata], HalfMatrix | None]:
        if query.include_texts:
            ids, titles, texts = self._database.names_and_texts(keys)
        else:
            ids, titles, texts = self._database.names(keys), [], []
        metadata = self._database.metadata(keys) if query.include_metadata else []
        vectors = self._dense.gather(keys) if query.include_embeddings and self._dense is not None else None
        return ids, titles, texts, metadata, vectors

    def _apply(self, change: Change, encoder: Encoder) -> None:
        """Brings the dense index up to a commit that has happened, so it must not fail."""
        self._unsaved += len(change.removed) + len(change.added)
        try:
            assert self._dense is not None
            self._dense.apply(change.removed, change.added, change.vectors)
        except Exception:
            logger.exception("the dense index could not follow a commit, a flat one over what is stored stands in")
            self._dense = self._standing_in(self._stored_table(encoder))

    def _stored_table(self, encoder: Encoder) -> VectorTable:
        keys, _ = self._database.vector_checksums()
        return VectorTable(keys, self._database.load_vectors(keys, encoder.dimension))

    def _standing_in(self, table: VectorTable) -> FaissDenseIndex:
        """A flat index for one that FAISS fails to build or to extend; where it is large, maintenance tries again."""
        return FaissDenseIndex(self._dense_index, self._dense_search_parameters, table, None)

    def _build_dense(self, encoder: Encoder) -> FaissDenseIndex:
        table = self._stored_table(encoder)
        try:
            return FaissDenseIndex.build(self._dense_index, self._dense_search_parameters, table, self._device)
        except (RuntimeError, MemoryError):
            logger.exception("FAISS cannot build the dense index, a flat one stands in")
            return self._standing_in(table)

    def _load_dense(self, encoder: Encoder) -> FaissDenseIndex:
        started = time.perf_counter()
        require_usable(self._dense_index, self._dense_search_parameters, encoder.dimension)
        keys, checksums = self._database.vector_checksums()
        dense = snapshot.restore(
            self._folder,
            self._dense_index,
            self._dense_search_parameters,
            encoder.dimension,
            keys,
            checksums,
            self._database.load_vectors,
            last_key=self._database.last_key,
            device=self._device,
        )
        if dense is None:
            dense = self._build_dense(encoder)
            self._unsaved = len(keys)
            if self._unsaved > _SNAPSHOT_ROWS:
                dense = self._saved(dense)
        logger.info(
            "dense index ready", extra={"vectors": len(keys), "seconds": round(time.perf_counter() - started, 2)}
        )
        return dense

    def _saved(self, dense: FaissDenseIndex) -> FaissDenseIndex:
        """Writes a snapshot; gives back the index that maps its vectors, or where that fails the same."""
        try:
            snapshot.write(self._folder, dense)
            self._unsaved = 0
            return snapshot.mapped(self._folder, dense)
        except (OSError, RuntimeError, ValueError) as error:
            logger.warning("dense snapshot not written or not mapped: %s", error)
            return dense

    def _require_whole(self) -> None:
        if self._check is not None and self._check.problem is not None:
            raise RetrievalError(self._check.problem)


class _LocalEngine:
    """FAISS and the index of words, asked for one query; implements :class:`resrank.retrieval.finding.Engine`."""

    def __init__(self, query: SearchQuery, dense: FaissDenseIndex, database: Database, kept: KeptRows | None) -> None:
        self._text = query.text
        self._embedding = query.embedding
        self._dense = dense
        self._database = database
        self._kept = kept
        # An approximate index may have missed anything, however many it has found.
        self.deep_from = _DEEP_FROM if dense.exact else np.inf

    def nearest(self, k: int) -> Ranked:
        return self._dense.search(self._query, k, self._kept)

    def highest_unseen(self, nearest: Ranked) -> float:
        return float(nearest[1].min(initial=np.inf)) if self._dense.exact else np.inf

    def cosines(self, keys: Keys) -> FloatVector:
        return self._dense.cosines(self._query, keys)

    def matches(self) -> LexicalMatches:
        return self._database.lexical_matches(self._text, None if self._kept is None else self._kept.keys)

    @property
    def _query(self) -> FloatVector:
        assert self._embedding is not None
        return self._embedding
