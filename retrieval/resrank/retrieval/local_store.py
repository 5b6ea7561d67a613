"""The store on one machine: SQLite holds the truth, FAISS and FTS5 search it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from resrank.core.errors import IndexFolderError, InvalidInputError
from resrank.retrieval import lexical, snapshot
from resrank.retrieval.database import Change, Database, refuse_foreign
from resrank.retrieval.dense import FaissDenseIndex, new_index
from resrank.retrieval.errors import EncoderMismatchError
from resrank.retrieval.fusion import reciprocal_rank_fusion
from resrank.retrieval.lock import FolderLock
from resrank.retrieval.records import (
    Encoder,
    FloatVector,
    HalfMatrix,
    IndexDescription,
    Keys,
    RecordBatch,
    SearchHits,
    SearchMode,
    SearchQuery,
    StoredRecord,
    UpsertCounts,
)
from resrank.retrieval.rwlock import ReadWriteLock
from resrank.retrieval.vector_table import VectorTable

logger = logging.getLogger(__name__)

FUSION_DEPTH = 100
"""Each list that HYBRID fuses is at least this long: with k = 10 alone, a passage that both lists have at rank 11 would
lose to one that a single list has at rank 10."""

_PROBE_DIMENSION = 960  # divisible by what product quantizers ask for; only tells a known factory string from a typo
_SNAPSHOT_ROWS = 10_000
_SNAPSHOT_SHARE = 0.2
_Result = TypeVar("_Result")


class LocalVectorStore:
    """One index folder, owned by this process; implements :class:`resrank.retrieval.store.VectorStore`.

    A search sees all of a batch or nothing of it: searches share a lock that a write holds alone for its commit and for
    the update of the dense index, while the rest of the transaction runs beside the searches.
    """

    def __init__(
        self, folder: Path, lock: FolderLock, database: Database, dense_index: str, dense_search_parameters: str
    ) -> None:
        self._folder = folder
        self._lock = lock
        self._database = database
        self._dense_index = dense_index
        self._dense_search_parameters = dense_search_parameters
        self._gate = ReadWriteLock()
        self._writing = threading.Lock()
        self._unsaved = 0
        self._dense: FaissDenseIndex | None = None
        if database.encoder is not None:
            self._dense = self._load_dense(database.encoder)

    @classmethod
    def open(cls, folder: Path, *, dense_index: str = "Flat", dense_search_parameters: str = "") -> Self:
        """Takes an index folder, creating it if need be, and loads or rebuilds what is derived.

        Args:
            folder: The index folder.
            dense_index: FAISS index_factory string.
            dense_search_parameters: FAISS search-time parameters, for instance ``nprobe=16``; empty for none.

        Returns:
            The open store.

        Raises:
            IndexFolderError: The folder is corrupt, foreign, not writable or owned by another process.
            InvalidInputError: FAISS does not know ``dense_index`` or ``dense_search_parameters``.
        """
        new_index(dense_index, _PROBE_DIMENSION)
        folder = folder.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            refuse_foreign(folder)
        except OSError as error:
            raise IndexFolderError(f"index folder {folder} cannot be made or read: {error.strerror}") from error
        lock = FolderLock.acquire(folder)
        try:
            database = Database.open(folder)
            try:
                return cls(folder, lock, database, dense_index, dense_search_parameters)
            except BaseException:
                database.close()
                raise
        except BaseException:
            lock.release()
            raise

    def announce(self, address: str) -> None:
        """Writes into the lock file where this folder is served."""
        self._lock.announce(address)

    def close(self) -> None:
        """Saves a snapshot if anything changed and gives the folder back."""
        with self._writing:
            if self._unsaved:
                self._save()
            self._database.close()
            self._lock.release()

    def search(self, query: SearchQuery) -> SearchHits:
        """Finds the best records, see :meth:`resrank.retrieval.store.VectorStore.search`."""
        clock = _StageClock()
        with self._gate.read():
            encoder = self._database.encoder
            _require_encoder(encoder, query)
            keys, scores = self._candidates(query, clock)
            ids, titles, texts, vectors = clock.run("gather", lambda: self._gather(query, keys))
        return SearchHits(
            ids=ids,
            scores=scores,
            titles=titles,
            texts=texts,
            vectors=vectors,
            encoder=encoder,
            stage_ms=clock.stage_ms,
        )

    def upsert(self, batch: RecordBatch) -> UpsertCounts:
        """Stores a batch, see :meth:`resrank.retrieval.store.VectorStore.upsert`."""
        with self._writing:
            encoder = self._database.encoder
            if encoder is None:
                # Fails before anything is stored if FAISS cannot have this dimension.
                empty = VectorTable(np.empty(0, np.int64), np.empty((0, batch.encoder.dimension), np.float16))
                dense = FaissDenseIndex.build(self._dense_index, self._dense_search_parameters, empty)
            elif encoder == batch.encoder and self._dense is not None:
                dense = self._dense
            else:
                raise EncoderMismatchError(
                    f"the index holds vectors of encoder {encoder.sha256} with dimension {encoder.dimension}, "
                    f"the batch brings those of encoder {batch.encoder.sha256} with dimension "
                    f"{batch.encoder.dimension}: encode with the index's encoder, or build another index"
                )
            with self._database.transaction():
                change = self._database.stage_upsert(batch)
                with self._gate.write():
                    self._database.commit(change, batch.encoder)
                    self._dense = dense
                    self._apply(change, batch.encoder)
        return UpsertCounts(inserted=len(change.added) - len(change.removed), updated=len(change.removed))

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Removes records, see :meth:`resrank.retrieval.store.VectorStore.delete`."""
        with self._writing:
            encoder = self._database.encoder
            if encoder is None:
                return list(ids)
            with self._database.transaction():
                change, missing = self._database.stage_delete(ids)
                with self._gate.write():
                    self._database.commit(change, encoder)
                    self._apply(change, encoder)
        return missing

    def get(self, ids: Sequence[str], *, include_texts: bool, include_embeddings: bool) -> dict[str, StoredRecord]:
        """Reads records by id, see :meth:`resrank.retrieval.store.VectorStore.get`."""
        return self._database.get(ids, include_texts=include_texts, include_vectors=include_embeddings)

    def describe(self) -> IndexDescription:
        """Tells what the index holds."""
        with self._gate.read():
            return IndexDescription(
                record_count=self._database.record_count,
                encoder=self._database.encoder,
                dense_index=self._dense_index if self._dense is None else self._dense.description,
                lexical_index=lexical.DESCRIPTION,
                path=str(self._folder),
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
                    self._save()
            except Exception:
                # Only what is derived is late; the next write tries again.
                logger.exception("maintenance of the dense index failed")

    def _candidates(self, query: SearchQuery, clock: _StageClock) -> tuple[Keys, list[float]]:
        depth = max(query.k, FUSION_DEPTH) if query.mode is SearchMode.HYBRID else query.k
        rankings: list[tuple[Keys, FloatVector]] = []
        if query.mode is not SearchMode.LEXICAL and self._dense is not None:
            dense, embedding = self._dense, query.embedding
            if embedding is None:
                raise InvalidInputError("embedding", f"{query.mode.name} needs a query embedding")
            rankings.append(clock.run("dense", lambda: dense.search(embedding, depth)))
        if query.mode is not SearchMode.DENSE:
            rankings.append(clock.run("lexical", lambda: self._database.search_lexical(query.text, depth)))
        if query.mode is SearchMode.HYBRID:
            fused = clock.run("fusion", lambda: reciprocal_rank_fusion([keys for keys, _ in rankings])[: query.k])
            return np.array([key for key, _ in fused], np.int64), [score for _, score in fused]
        if not rankings:
            return np.empty(0, np.int64), []
        ((keys, scores),) = rankings
        return keys, scores.tolist()

    def _gather(self, query: SearchQuery, keys: Keys) -> tuple[list[str], list[str], list[str], HalfMatrix | None]:
        if query.include_texts:
            ids, titles, texts = self._database.names_and_texts(keys)
        else:
            ids, titles, texts = self._database.names(keys), [], []
        vectors = self._dense.gather(keys) if query.include_embeddings and self._dense is not None else None
        return ids, titles, texts, vectors

    def _apply(self, change: Change, encoder: Encoder) -> None:
        """Brings the dense index up to a commit that has happened, so it must not fail."""
        self._unsaved += len(change.removed) + len(change.added)
        try:
            assert self._dense is not None
            self._dense.apply(change.removed, change.added, change.vectors)
        except Exception:
            logger.exception("the dense index could not follow a commit, building it anew from the store")
            self._dense = self._build_dense(encoder)

    def _build_dense(self, encoder: Encoder) -> FaissDenseIndex:
        table = VectorTable(*self._database.load_vectors(encoder.dimension))
        return FaissDenseIndex.build(self._dense_index, self._dense_search_parameters, table)

    def _load_dense(self, encoder: Encoder) -> FaissDenseIndex:
        started = time.perf_counter()
        keys, vectors = self._database.load_vectors(encoder.dimension)
        dense = snapshot.restore(
            self._folder,
            self._dense_index,
            self._dense_search_parameters,
            keys,
            vectors,
            last_key=self._database.last_key,
        )
        if dense is None:
            dense = FaissDenseIndex.build(self._dense_index, self._dense_search_parameters, VectorTable(keys, vectors))
            self._unsaved = len(keys)
        logger.info("dense index ready vectors=%d seconds=%.2f", len(keys), time.perf_counter() - started)
        return dense

    def _save(self) -> None:
        assert self._dense is not None
        try:
            snapshot.write(self._folder, self._dense)
        except (OSError, RuntimeError) as error:
            logger.warning("dense snapshot not written, the next start rebuilds: %s", error)
        else:
            self._unsaved = 0


class _StageClock:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self.stage_ms: dict[str, float] = {}

    def run(self, stage: str, work: Callable[[], _Result]) -> _Result:
        """Runs and times a stage."""
        started = time.perf_counter()
        result = work()
        self.stage_ms[stage] = 1e3 * (time.perf_counter() - started)
        return result


def _require_encoder(encoder: Encoder | None, query: SearchQuery) -> None:
    if encoder is None:
        return
    if query.encoder_sha256 is not None and query.encoder_sha256 != encoder.sha256:
        raise EncoderMismatchError(
            f"the index belongs to encoder {encoder.sha256}, the query's embedding comes from {query.encoder_sha256}: "
            "search with the index's encoder"
        )
    if query.embedding is not None and len(query.embedding) != encoder.dimension:
        raise InvalidInputError(
            "embedding", "dimension is not the index's", limit=encoder.dimension, value=len(query.embedding)
        )
