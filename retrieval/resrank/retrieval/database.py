"""The store, which is the truth: one SQLite database with every record, its vector and the lexical index.

Write-ahead logging with ``synchronous=FULL``: a commit is on the disk before it returns, and readers never wait for
the writer. Every stored version of a record gets a new, ever greater key (``AUTOINCREMENT``), so that a derived index
knows what it lacks (greater keys than its own) and what it must forget (keys that are gone).
"""

from __future__ import annotations

import json
import logging
import queue
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resrank.core.errors import IndexFolderError, RetrievalError
from resrank.core.passage import content_sha256
from resrank.retrieval import lexical
from resrank.retrieval.errors import StoreWriteError
from resrank.retrieval.lock import LOCK_FILE
from resrank.retrieval.records import (
    Encoder,
    FloatVector,
    HalfMatrix,
    Keys,
    Record,
    RecordBatch,
    StoredRecord,
    WordScores,
)

logger = logging.getLogger(__name__)

STORE_FILE = "store.sqlite3"
SCHEMA_VERSION = 2
APPLICATION_ID = 0x52655352  # "ReSR", in the file's header: tells our databases from other programs'

_SCHEMA = f"""
CREATE TABLE records(
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL,
    content_sha256 BLOB NOT NULL
);
-- Apart from the texts, so that loading all vectors does not read them.
CREATE TABLE vectors(key INTEGER PRIMARY KEY REFERENCES records(key), vector BLOB NOT NULL);
CREATE TABLE encoder(sha256 TEXT NOT NULL, dimension INTEGER NOT NULL);
{lexical.SCHEMA}
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

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
    """

    removed: Keys
    added: Keys
    vectors: HalfMatrix


class Database:
    """The SQLite database of one index folder: one writer, any number of reading threads."""

    def __init__(self, path: Path, writer: sqlite3.Connection) -> None:
        self._path = path
        self._writer = writer
        self._readers: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._lexical = lexical.LexicalIndex()
        self.encoder = self._read_encoder()
        (self.record_count,) = writer.execute("SELECT count(*) FROM records").fetchone()
        row = writer.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
        self.last_key: int = row[0] if row else 0

    @classmethod
    def open(cls, folder: Path) -> Database:
        """Opens the database of an index folder, creating it in an empty one.

        The whole file is checked, in time proportional to its size.

        Args:
            folder: An existing folder, locked by this process.

        Returns:
            The open database.

        Raises:
            IndexFolderError: The file is corrupt, foreign or of another version, or it cannot be written.
        """
        path = folder / STORE_FILE
        writer: sqlite3.Connection | None = None
        try:
            writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            lexical.register(writer)
            _prepare(writer, path)
            return cls(path, writer)
        except sqlite3.Error as error:
            if writer is not None:
                writer.close()
            raise IndexFolderError(f"{path} cannot be opened ({error}): restore it or name another") from error
        except IndexFolderError:
            if writer is not None:
                writer.close()
            raise

    def close(self) -> None:
        """Closes every connection; none may be in use."""
        while not self._readers.empty():
            self._readers.get().close()
        self._writer.close()

    def load_vectors(self, dimension: int) -> tuple[Keys, HalfMatrix]:
        """Reads all vectors.

        Args:
            dimension: Their dimension d.

        Returns:
            Keys, ascending, and vectors, fp16 [n, d].

        Raises:
            IndexFolderError: A vector is missing, has another size or is not finite.
        """
        with self._reading() as connection:
            (count,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
            keys = np.empty(count, np.int64)
            vectors = np.empty((count, dimension), np.float16)
            cursor = connection.execute("SELECT key, vector FROM vectors ORDER BY key")
            filled = 0
            while rows := cursor.fetchmany(4096):
                packed = b"".join(row[1] for row in rows)
                end = filled + len(rows)
                if any(len(row[1]) != 2 * dimension for row in rows):
                    raise IndexFolderError(f"{self._path} is corrupt: a vector has not {dimension} components")
                keys[filled:end] = [row[0] for row in rows]
                vectors[filled:end] = np.frombuffer(packed, "<f2").reshape(len(rows), dimension)
                filled = end
        if count != self.record_count:
            raise IndexFolderError(f"{self._path} is corrupt: {self.record_count} records but {count} vectors")
        if not np.isfinite(vectors).all():
            raise IndexFolderError(f"{self._path} is corrupt: a stored vector is not finite")
        return keys, vectors

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Runs what is inside in one transaction, which the caller ends with :meth:`commit`.

        Raises:
            StoreWriteError: The disk refused; the transaction is undone.
        """
        with self._translated("write to"):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    def commit(self, change: Change, encoder: Encoder | None) -> None:
        """Makes the open transaction durable.

        Args:
            change: What the transaction does.
            encoder: The encoder that the index belongs to from now on.
        """
        self._writer.execute("COMMIT")
        self.record_count += len(change.added) - len(change.removed)
        self.last_key = max(self.last_key, int(change.added[-1]) if len(change.added) else 0)
        self.encoder = encoder
        self._lexical.invalidate()

    def stage_upsert(self, batch: RecordBatch) -> Change:
        """Writes a batch inside the open transaction, replacing records of the same ids."""
        replaced = self._keys_of(self._writer, [record.id for record in batch.records])
        removed = np.array(sorted(replaced.values()), np.int64)
        self._remove(removed)
        added = np.arange(self.last_key + 1, self.last_key + 1 + len(batch.records), dtype=np.int64)
        self._writer.executemany(
            "INSERT INTO records(key, id, title, text, metadata, content_sha256) VALUES (?, ?, ?, ?, ?, ?)",
            (
                (
                    key,
                    record.id,
                    record.title,
                    record.text,
                    json.dumps(dict(record.metadata), ensure_ascii=False, sort_keys=True),
                    content_sha256(record.title, record.text, record.metadata),
                )
                for key, record in zip(added.tolist(), batch.records, strict=True)
            ),
        )
        self._writer.executemany(
            "INSERT INTO vectors(key, vector) VALUES (?, ?)",
            zip(added.tolist(), (vector.astype("<f2").tobytes() for vector in batch.vectors), strict=True),
        )
        if self.encoder is None:
            self._writer.execute(
                "INSERT INTO encoder(sha256, dimension) VALUES (?, ?)", (batch.encoder.sha256, batch.encoder.dimension)
            )
        return Change(removed=removed, added=added, vectors=batch.vectors)

    def stage_delete(self, ids: Sequence[str]) -> tuple[Change, list[str]]:
        """Deletes records inside the open transaction.

        Returns:
            What it does, and the ids that were not there.
        """
        present = self._keys_of(self._writer, ids)
        removed = np.array(sorted(present.values()), np.int64)
        self._remove(removed)
        change = Change(removed=removed, added=np.empty(0, np.int64), vectors=np.empty((0, 0), np.float16))
        return change, [id_ for id_ in ids if id_ not in present]

    def lexical_matches(self, text: str) -> lexical.LexicalMatches:
        """BM25 of all that match, see :meth:`resrank.retrieval.lexical.LexicalIndex.matches`."""
        with self._reading() as connection:
            return self._lexical.matches(connection, text, self.record_count)

    def word_scores(self, text: str, ids: Sequence[str]) -> WordScores:
        """BM25 of some records and the best of all, of one state of the index."""
        with self._reading() as connection:
            connection.execute("BEGIN")
            try:
                keys = self._keys_of(connection, ids)
                matches = self._lexical.matches(connection, text, self.record_count)
            finally:
                connection.execute("ROLLBACK")
        scores = matches.scores_of(np.fromiter(keys.values(), np.int64, len(keys)))
        return WordScores(dict(zip(keys, scores.tolist(), strict=True)), matches.best)

    def search_lexical(self, text: str, k: int) -> tuple[Keys, FloatVector]:
        """BM25 over title and text, see :meth:`resrank.retrieval.lexical.LexicalIndex.search`."""
        with self._reading() as connection:
            return self._lexical.search(connection, text, k, self.record_count)

    def list_ids(self, after: str, limit: int) -> list[str]:
        """At most ``limit`` ids after one, in the order of their UTF-8 bytes, which is SQLite's of texts."""
        with self._reading() as connection:
            rows = connection.execute("SELECT id FROM records WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
            return [row[0] for row in rows]

    def names(self, keys: Keys) -> list[str]:
        """The ids of live keys, in their order."""
        return [row[1] for row in self._in_order("key, id", keys)]

    def names_and_texts(self, keys: Keys) -> tuple[list[str], list[str], list[str]]:
        """Ids, titles and texts of live keys, in their order."""
        rows = self._in_order("key, id, title, text", keys)
        return [row[1] for row in rows], [row[2] for row in rows], [row[3] for row in rows]

    def get(self, ids: Sequence[str], *, include_texts: bool, include_vectors: bool) -> dict[str, StoredRecord]:
        """Reads records by id; those that are not there are absent from the answer."""
        columns = "id, content_sha256"
        columns += ", title, text, metadata" if include_texts else ", '', '', '{}'"
        columns += ", vector" if include_vectors else ", NULL"
        source = "records JOIN vectors USING (key)" if include_vectors else "records"
        with self._reading() as connection:
            rows = connection.execute(f"SELECT {columns} FROM {source} WHERE id IN ({_marks(ids)})", ids).fetchall()
        return {
            id_: StoredRecord(
                record=Record(id=id_, title=title, text=text, metadata=json.loads(metadata)),
                content_sha256=digest,
                vector=None if vector is None else np.frombuffer(vector, "<f2"),
            )
            for id_, digest, title, text, metadata, vector in rows
        }

    def _in_order(self, columns: str, keys: Keys) -> list[tuple[Any, ...]]:
        wanted = keys.tolist()
        with self._reading() as connection:
            rows = connection.execute(f"SELECT {columns} FROM records WHERE key IN ({_marks(wanted)})", wanted)
            by_key = {row[0]: row for row in rows}
        return [by_key[key] for key in wanted]

    def _remove(self, keys: Keys) -> None:
        parameters = [(key,) for key in keys.tolist()]
        self._writer.executemany("DELETE FROM vectors WHERE key = ?", parameters)
        self._writer.executemany("DELETE FROM records WHERE key = ?", parameters)

    def _read_encoder(self) -> Encoder | None:
        row = self._writer.execute("SELECT sha256, dimension FROM encoder").fetchone()
        return None if row is None else Encoder(sha256=row[0], dimension=row[1])

    def _keys_of(self, connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, int]:
        return dict(connection.execute(f"SELECT id, key FROM records WHERE id IN ({_marks(ids)})", ids).fetchall())

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._translated("read"):
            try:
                connection = self._readers.get_nowait()
            except queue.Empty:
                connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
                connection.execute("PRAGMA query_only = ON")
            try:
                yield connection
            finally:
                self._readers.put(connection)

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


def refuse_foreign(folder: Path) -> None:
    """Checks that an existing folder may be taken: it is empty or has a store.

    Raises:
        IndexFolderError: It holds something else.
    """
    if (folder / STORE_FILE).exists():
        return
    strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in {LOCK_FILE, "lost+found"})
    if strangers:
        raise IndexFolderError(
            f"{folder} is not an index folder: it holds {strangers[0]} but no {STORE_FILE}; name another"
        )


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if tables and application_id != APPLICATION_ID:
        raise IndexFolderError(f"{path} is another program's database: name another index folder")
    if tables and not 1 <= version <= SCHEMA_VERSION:
        raise IndexFolderError(
            f"{path} has schema version {version}, this release reads up to {SCHEMA_VERSION}: build the index anew"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    if not tables:
        connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise IndexFolderError(f"{path} is corrupt ({verdict}): restore it or build the index anew")
    if tables and version < SCHEMA_VERSION:
        logger.info("bringing %s from schema version %d to %d", path, version, SCHEMA_VERSION)
        connection.executescript(f"BEGIN; {lexical.MIGRATION_FROM_1} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
