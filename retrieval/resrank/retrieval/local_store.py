"""The store on one machine: SQLite holds the truth, FAISS and FTS5 search it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from resrank.core.errors import EncoderMismatchError, IndexFolderError, InvalidInputError
from resrank.core.filters import Filter, check_filter
from resrank.core.fusion import Fusion
from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.metadata import Metadata
from resrank.core.search import SearchMode
from resrank.core.sidecar.words import ENCODER_MISMATCH
from resrank.core.tracing import inner_span
from resrank.retrieval import lexical, snapshot
from resrank.retrieval.database import Change, Database
from resrank.retrieval.dense import FaissDenseIndex, new_index
from resrank.retrieval.fusion import Ranked, reciprocal_rank_fusion, weighted_fusion
from resrank.retrieval.kept_rows import KeptRows, kept_rows
from resrank.retrieval.lock import FolderLock
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
from resrank.retrieval.rwlock import ReadWriteLock
from resrank.retrieval.schema import refuse_foreign
from resrank.retrieval.vector_table import VectorTable

logger = logging.getLogger(__name__)

RRF_DEPTH = MAX_MESSAGE_RECORDS
"""Each list that reciprocal rank fusion joins is this long, whatever k: its scores depend on the depth, and what k
finds is to be the beginning of what a larger k finds."""

_NO_SCORES = np.empty(0, np.float32)

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
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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

    def announce(self, address: str, *, transient: bool) -> None:
        """Writes into the lock file where this folder is served, and whether that ends with a command."""
        self._lock.announce(address, transient=transient)

    def close(self) -> None:
        """Saves a snapshot if anything changed and gives the folder back."""
        with self._writing:
            if self._unsaved:
                self._save()
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

    def search(self, query: SearchQuery) -> SearchHits:
        """Finds the best records, see :meth:`resrank.retrieval.store.VectorStore.search`."""
        clock = _StageClock()
        with self._gate.read():
            encoder = self._database.encoder
            _require_encoder(encoder, query)
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

    def list_ids(self, after: str, limit: int) -> list[str]:
        """Ids page by page, see :meth:`resrank.retrieval.store.VectorStore.list_ids`."""
        return self._database.list_ids(after, limit)

    def word_scores(self, text: str, ids: Sequence[str]) -> WordScores:
        """BM25 of some records, see :meth:`resrank.retrieval.store.VectorStore.word_scores`."""
        return self._database.word_scores(text, ids)

    def export(self) -> Generator[RecordBatch, None, None]:
        """All records of one moment, see :meth:`resrank.retrieval.store.VectorStore.export`."""
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
                    self._save()
            except Exception:
                # Only what is derived is late; the next write tries again.
                logger.exception("maintenance of the dense index failed")

    def _release(self) -> None:
        self._database.close()
        self._lock.release()

    def _find(self, query: SearchQuery, clock: _StageClock) -> _Found:
        dense, embedding = self._dense, query.embedding
        if dense is None or not self._database.record_count:
            return _NOTHING
        kept = None
        if (condition := query.filter) is not None:
            kept = clock.run("filter", lambda: self._kept(condition, dense))
            if not len(kept.keys):
                return _NOTHING
        among = None if kept is None else kept.keys
        if query.mode is SearchMode.LEXICAL:
            keys, scores = clock.run("lexical", lambda: self._database.search_lexical(query.text, query.k, among))
            return _Found(keys, scores, _NO_SCORES, scores, float(scores.max(initial=0.0)))
        if embedding is None:
            raise InvalidInputError("embedding", f"{query.mode.name} needs a query embedding")
        if query.mode is SearchMode.DENSE:
            keys, scores = clock.run("dense", lambda: dense.search(embedding, query.k, kept))
            return _Found(keys, scores, scores, _NO_SCORES)
        depth = RRF_DEPTH if query.fusion is Fusion.RRF else query.k
        nearest = clock.run("dense", lambda: dense.search(embedding, depth, kept))
        matches = clock.run("lexical", lambda: self._database.lexical_matches(query.text, among))
        keys, scores = clock.run("fusion", lambda: _fused(query, embedding, dense, nearest, matches))
        return _Found(keys, scores, dense.cosines(embedding, keys), matches.scores_of(keys), matches.best)

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
            logger.exception("the dense index could not follow a commit, building it anew from the store")
            self._dense = self._build_dense(encoder)

    def _build_dense(self, encoder: Encoder) -> FaissDenseIndex:
        table = VectorTable(*self._database.load_vectors(encoder.dimension)[:2])
        return FaissDenseIndex.build(self._dense_index, self._dense_search_parameters, table)

    def _load_dense(self, encoder: Encoder) -> FaissDenseIndex:
        started = time.perf_counter()
        keys, vectors, checksums = self._database.load_vectors(encoder.dimension)
        dense = snapshot.restore(
            self._folder,
            self._dense_index,
            self._dense_search_parameters,
            keys,
            vectors,
            checksums,
            last_key=self._database.last_key,
        )
        if dense is None:
            dense = FaissDenseIndex.build(self._dense_index, self._dense_search_parameters, VectorTable(keys, vectors))
            self._unsaved = len(keys)
        logger.info(
            "dense index ready", extra={"vectors": len(keys), "seconds": round(time.perf_counter() - started, 2)}
        )
        return dense

    def _save(self) -> None:
        assert self._dense is not None
        try:
            snapshot.write(self._folder, self._dense)
        except (OSError, RuntimeError) as error:
            logger.warning("dense snapshot not written, the next start rebuilds: %s", error)
        else:
            self._unsaved = 0


@dataclass(frozen=True, slots=True)
class _Found:
    """Keys, best first, and parallel to them what they score."""

    keys: Keys
    scores: FloatVector
    cosines: FloatVector
    bm25: FloatVector
    best_bm25: float = 0.0


_NOTHING = _Found(np.empty(0, np.int64), _NO_SCORES, _NO_SCORES, _NO_SCORES)


class _StageClock:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self.stage_ms: dict[str, float] = {}

    def run(self, stage: str, work: Callable[[], _Result]) -> _Result:
        """Runs and times a stage."""
        started = time.perf_counter()
        with inner_span(stage):
            result = work()
        self.stage_ms[stage] = 1e3 * (time.perf_counter() - started)
        return result


def _fused(
    query: SearchQuery, embedding: FloatVector, dense: FaissDenseIndex, nearest: Ranked, matches: lexical.LexicalMatches
) -> Ranked:
    if query.fusion is Fusion.RRF:
        return reciprocal_rank_fusion([nearest[0], matches.ranking[:RRF_DEPTH]], query.k)
    return weighted_fusion(
        nearest,
        matches,
        lambda keys: dense.cosines(embedding, keys),
        query.cosine_map,
        query.lexical_weight,
        query.k,
        highest_unseen=float(nearest[1].min(initial=np.inf)) if dense.exact else np.inf,
    )


def _require_encoder(encoder: Encoder | None, query: SearchQuery) -> None:
    if encoder is None:
        return
    if query.encoder_sha256 is not None and query.encoder_sha256 != encoder.sha256:
        raise EncoderMismatchError(
            f"{ENCODER_MISMATCH} {encoder.sha256}, the query's embedding comes from {query.encoder_sha256}: "
            "search with the index's encoder"
        )
    if query.embedding is not None and len(query.embedding) != encoder.dimension:
        raise InvalidInputError(
            "embedding", "dimension is not the index's", limit=encoder.dimension, value=len(query.embedding)
        )
