"""The store, which is the truth: one SQLite database with every record, its vector and the lexical index.

Write-ahead logging with ``synchronous=FULL``: a commit is on the disk before it returns, and readers never wait for
the writer. Every stored version of a record gets a new, ever greater key (``AUTOINCREMENT``), so that a derived index
knows what it lacks (greater keys than its own) and what it must forget (keys that are gone).
"""

from __future__ import annotations

import logging
import queue
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resrank.core.errors import IndexFolderError, RetrievalError
from resrank.core.filters import Comparison
from resrank.core.metadata import FieldType, Metadata, write_metadata
from resrank.core.passage import content_sha256
from resrank.retrieval import quota
from resrank.retrieval.errors import StoreWriteError
from resrank.retrieval.local import checksums, lexical, stored_records
from resrank.retrieval.local.checksums import Checksums
from resrank.retrieval.local.metadata_index import FieldChanges, MetadataIndex
from resrank.retrieval.local.postings import open_occurrences
from resrank.retrieval.local.schema import STORE_FILE, make_store, prepare
from resrank.retrieval.local.vector_segment import VectorSegment
from resrank.retrieval.matches import LexicalMatches
from resrank.retrieval.records import (
    Encoder,
    HalfMatrix,
    Keys,
    RecordBatch,
    StoredRecord,
    WordScores,
)

logger = logging.getLogger(__name__)

_EXPORTED_RECORDS = 256
"""In one batch: 1 MiB as a rule, 30 MiB where every record is of the longest."""

_LOG_PAGES = 1000
"""What the write-ahead log may grow by, about, before its pages are put in their place: SQLite's own number."""
_PAGES_A_COMMIT = 20
"""Of the tables and indexes that any commit touches, beside one for each record."""

_DISK_REFUSED = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
}


@dataclass(frozen=True, slots=True)
class Change:
    """What a transaction does to a derived index.

    Attributes:
        removed: Keys that go.
        added: Keys that come, ascending.
        vectors: Their vectors, fp16 [len(added), d].
        fields: What becomes of the metadata's fields.
    """

    removed: Keys
    added: Keys
    vectors: HalfMatrix
    fields: FieldChanges


class Database:
    """The SQLite database of one index folder: one writer, any number of reading threads."""

    def __init__(self, path: Path, writer: sqlite3.Connection) -> None:
        self._path = path
        self._file = _identity(path)
        self._writer = writer
        self._readers: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._lexical = lexical.LexicalIndex()
        self._lexical.load(writer)
        self._metadata = MetadataIndex(writer)
        self.encoder = stored_records.encoder_of(writer)
        (self.record_count,) = writer.execute("SELECT count(*) FROM records").fetchone()
        row = writer.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
        self.last_key: int = row[0] if row else 0
        self.bytes, *bounds = writer.execute("SELECT bytes, quota_records, quota_bytes FROM usage").fetchone()
        self.quota = quota.Quota(*bounds)
        self._staged_bytes: int = self.bytes
        self._log_pages = 0

    @classmethod
    def open(cls, folder: Path) -> Database:
        """Opens the database of an index folder, creating it in an empty one.

        What it holds is checked elsewhere, see :mod:`resrank.retrieval.local.integrity`.

        Args:
            folder: An existing folder, locked by this process.

        Returns:
            The open database.

        Raises:
            IndexFolderError: The file is foreign or of another version, or it cannot be read or written.
        """
        path = folder / STORE_FILE
        writer: sqlite3.Connection | None = None
        try:
            if not path.exists():
                make_store(folder)
            writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            prepare(writer, path)
            writer.execute("PRAGMA wal_autocheckpoint = 0")  # it would be part of a commit: see `checkpoint`
            return cls(path, writer)
        except IndexFolderError:
            if writer is not None:
                writer.close()
            raise
        except (sqlite3.Error, OSError, RetrievalError) as error:
            if writer is not None:
                writer.close()
            raise IndexFolderError(f"{path} cannot be opened ({error}): restore it or name another") from error

    def close(self) -> None:
        """Closes every connection; none may be in use."""
        while not self._readers.empty():
            self._readers.get().close()
        self._writer.close()

    def vector_checksums(self) -> tuple[Keys, Checksums]:
        """See :func:`resrank.retrieval.local.stored_records.vector_checksums`."""
        with self._reading() as connection:
            return stored_records.vector_checksums(connection, self._path, self.record_count)

    def load_vectors(self, keys: Keys, dimension: int) -> VectorSegment:
        """See :func:`resrank.retrieval.local.stored_records.load_vectors`."""
        with self._reading() as connection:
            return stored_records.load_vectors(connection, self._path, keys, dimension)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Runs what is inside in one transaction, which the caller ends with :meth:`commit`.

        Raises:
            StoreWriteError: The disk refused, or the file is not in its place any more; the transaction is undone.
        """
        self._require_own_file()
        with self._translated("write to"):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    def commit(self, change: Change, encoder: Encoder | None) -> None:
        """Makes the open transaction durable, unless the file was taken away meanwhile.

        Args:
            change: What the transaction does.
            encoder: The encoder that the index belongs to from now on.
        """
        self._require_own_file()
        self._writer.execute("COMMIT")
        self.record_count += len(change.added) - len(change.removed)
        self.last_key = max(self.last_key, int(change.added[-1]) if len(change.added) else 0)
        self.bytes = self._staged_bytes
        self.encoder = encoder
        self._lexical.follow(change.removed)
        self._metadata.follow(change.fields)
        self._log_pages += _PAGES_A_COMMIT + len(change.added) + len(change.removed)

    def checkpoint(self) -> None:
        """Puts the pages of a log that has grown in their place, beside searches, for which a commit would wait.

        What is committed is durable without: a disk that refuses is asked again after the next commit.
        """
        if self._log_pages < _LOG_PAGES:
            return
        try:
            self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self._log_pages = 0
        except sqlite3.OperationalError as error:
            logger.warning("the write-ahead log keeps its pages", extra={"path": str(self._path), "error": str(error)})

    def stage_upsert(self, batch: RecordBatch) -> Change:
        """Writes a batch inside the open transaction, replacing records of the same ids.

        Raises:
            QuotaExceededError: The collection would grow beyond its quota.
            InvalidInputError: A record's metadata has a field of another type than the records that stay.
        """
        replaced = stored_records.keys_of(self._writer, [record.id for record in batch.records])
        removed = np.array(sorted(replaced.values()), np.int64)
        added = np.arange(self.last_key + 1, self.last_key + 1 + len(batch.records), dtype=np.int64)
        fields = self._metadata.stage(
            self._writer, removed.tolist(), list(zip(added.tolist(), batch.records, strict=True))
        )
        freed = self._remove(removed)
        stored_metadata = [write_metadata(record.metadata) for record in batch.records]
        self._writer.executemany(
            "INSERT INTO records(key, id, title, text, metadata, content_sha256) VALUES (?, ?, ?, ?, ?, ?)",
            (
                (
                    key,
                    record.id,
                    record.title,
                    record.text,
                    metadata,
                    content_sha256(record.title, record.text, record.metadata),
                )
                for key, record, metadata in zip(added.tolist(), batch.records, stored_metadata, strict=True)
            ),
        )
        self._writer.executemany(
            "INSERT INTO vectors(key, vector) VALUES (?, ?)",
            zip(added.tolist(), (vector.astype("<f2").tobytes() for vector in batch.vectors), strict=True),
        )
        self._writer.executemany(
            "INSERT INTO checksums(key, id, content, metadata, vector) VALUES (?, ?, ?, ?, ?)",
            (
                (
                    key,
                    checksums.of_id(key, record.id),
                    checksums.of_content(record.title, record.text),
                    checksums.of_text(metadata),
                    int(vector),
                )
                for key, record, metadata, vector in zip(
                    added.tolist(), batch.records, stored_metadata, checksums.of_vectors(batch.vectors), strict=True
                )
            ),
        )
        if self.encoder is None:
            self._writer.execute(
                "INSERT INTO encoder(sha256, dimension) VALUES (?, ?)", (batch.encoder.sha256, batch.encoder.dimension)
            )
        (stored,) = self._writer.execute(quota.TAKEN_FROM, (int(added[0]),)).fetchone()
        taken = self.bytes - freed + stored
        self.quota.check(self.record_count - len(removed) + len(added), taken)
        self._take(taken)
        return Change(removed=removed, added=added, vectors=batch.vectors, fields=fields)

    def stage_delete(self, ids: Sequence[str]) -> tuple[Change, list[str]]:
        """Deletes records inside the open transaction.

        Returns:
            What it does, and the ids that were not there.
        """
        present = stored_records.keys_of(self._writer, ids)
        removed = np.array(sorted(present.values()), np.int64)
        fields = self._metadata.stage(self._writer, removed.tolist(), [])
        self._take(self.bytes - self._remove(removed))
        change = Change(removed, np.empty(0, np.int64), np.empty((0, 0), np.float16), fields)
        return change, [id_ for id_ in ids if id_ not in present]

    @property
    def fields(self) -> dict[str, FieldType]:
        """What the metadata of all records has, by name."""
        return self._metadata.types

    def keys_where(self, comparison: Comparison, among: Keys | None = None) -> Keys:
        """Keys by their metadata, see :meth:`resrank.retrieval.local.metadata_index.MetadataIndex.keys`."""
        with self._reading() as connection:
            return self._metadata.keys(connection, comparison, among)

    def are_at_most(self, count: int, comparison: Comparison) -> bool:
        """See :meth:`resrank.retrieval.local.metadata_index.MetadataIndex.are_at_most`."""
        with self._reading() as connection:
            return self._metadata.are_at_most(connection, count, comparison)

    def lexical_matches(self, text: str, kept: Keys | None = None) -> LexicalMatches:
        """BM25 of all that match, see :meth:`resrank.retrieval.local.lexical.LexicalIndex.matches`; beside no commit.

        Args:
            text: The query.
            kept: The only records that count, at least one, ascending; None for all.
        """
        with self._reading() as connection:
            matches = self._lexical.matches(connection, text)
        return matches if kept is None else matches.among(kept)

    def word_scores(self, text: str, ids: Sequence[str]) -> WordScores:
        """BM25 of some records and the best of all; beside no commit."""
        with self._reading() as connection:
            keys = stored_records.keys_of(connection, ids)
            matches = self._lexical.matches(connection, text)
        scores = matches.scores_of(np.fromiter(keys.values(), np.int64, len(keys)))
        return WordScores(dict(zip(keys, scores.tolist(), strict=True)), matches.best)

    def list_ids(self, after: str, limit: int) -> list[str]:
        """At most ``limit`` ids after one, in the order of their UTF-8 bytes, which is SQLite's of texts."""
        with self._reading() as connection:
            return stored_records.ids_after(connection, after, limit)

    def names(self, keys: Keys) -> list[str]:
        """The ids of live keys, in their order.

        Raises:
            RetrievalError: One is not what was stored.
        """
        with self._reading() as connection:
            return stored_records.names(connection, keys)

    def names_and_texts(self, keys: Keys) -> tuple[list[str], list[str], list[str]]:
        """Ids, titles and texts of live keys, in their order.

        Raises:
            RetrievalError: One is not what was stored.
        """
        with self._reading() as connection:
            return stored_records.names_and_texts(connection, keys)

    def metadata(self, keys: Keys) -> list[Metadata]:
        """The metadata of live keys, in their order.

        Raises:
            RetrievalError: One is not what was stored.
        """
        with self._reading() as connection:
            return stored_records.metadata_of(connection, keys)

    def get(self, ids: Sequence[str], *, include_texts: bool, include_vectors: bool) -> dict[str, StoredRecord]:
        """Reads records by id; those that are not there are absent from the answer.

        Raises:
            RetrievalError: One is not what was stored.
        """
        with self._reading() as connection:
            return stored_records.records_of(
                connection, ids, include_texts=include_texts, include_vectors=include_vectors
            )

    def export(self) -> Generator[RecordBatch, None, None]:
        """All records, see :meth:`resrank.retrieval.store.VectorStore.export`.

        A connection of its own keeps the moment for as long as it is read; the write-ahead log grows meanwhile.
        """
        with self._translated("read"), closing(self._connect_reader()) as connection:
            connection.execute("BEGIN")
            encoder = stored_records.encoder_of(connection)
            last = ""
            while ids := stored_records.ids_after(connection, last, _EXPORTED_RECORDS):
                assert encoder is not None
                found = stored_records.records_of(connection, ids, include_texts=True, include_vectors=True)
                stored = [found[id_] for id_ in ids]
                vectors = [record.vector for record in stored if record.vector is not None]
                yield RecordBatch(encoder, tuple(record.record for record in stored), np.stack(vectors))
                last = ids[-1]

    def _require_own_file(self) -> None:
        """What is written to a file that was removed or replaced is gone with the process that holds it open."""
        if _identity(self._path) != self._file:
            raise StoreWriteError(
                f"{self._path} was removed or replaced beneath this process: nothing is stored any more, and searches "
                "go on with what it holds open; restore the file and restart"
            )

    def _take(self, taken: int) -> None:
        self._writer.execute("UPDATE usage SET bytes = ?", (taken,))
        self._staged_bytes = taken

    def _remove(self, keys: Keys) -> int:
        """Removes records; gives back how many bytes they took."""
        parameters = [(key,) for key in keys.tolist()]
        freed: int = sum(self._writer.execute(quota.TAKEN_BY, key).fetchone()[0] for key in parameters)
        self._writer.executemany("DELETE FROM vectors WHERE key = ?", parameters)
        self._writer.executemany("DELETE FROM checksums WHERE key = ?", parameters)
        self._writer.executemany("DELETE FROM records WHERE key = ?", parameters)
        return freed

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._translated("read"):
            try:
                connection = self._readers.get_nowait()
            except queue.Empty:
                connection = self._connect_reader()
            try:
                yield connection
            except BaseException:
                connection.close()  # whatever it was in the middle of
                raise
            self._readers.put(connection)

    def _connect_reader(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        open_occurrences(connection)
        connection.execute("PRAGMA query_only = ON")
        return connection

    @contextmanager
    def _translated(self, action: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the extended code's low byte is the primary one
            if code in _DISK_REFUSED and action != "read":
                raise StoreWriteError(
                    f"the disk refused to write {self._path} ({error}): nothing was stored"
                ) from error
            raise RetrievalError(f"cannot {action} {self._path}: {error}") from error


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file lies there; None for none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
