"""What the store's tables hold, read through a connection and compared with the checksums that were stored beside it.

Whatever is not what was stored is a :class:`resrank.core.errors.RetrievalError` that names the record. Cursors are read
to their end or closed before it is raised: a traceback would keep an open one, and with it the state that it sees.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from resrank.core.errors import IndexFolderError
from resrank.core.metadata import Metadata, read_metadata
from resrank.core.passage import content_sha256
from resrank.retrieval.local import checksums
from resrank.retrieval.local.checksums import Checksums, damaged
from resrank.retrieval.local.vector_segment import VectorSegment
from resrank.retrieval.records import Encoder, HalfMatrix, Keys, Record, StoredRecord

_ROWS_AT_ONCE = 4096


def encoder_of(connection: sqlite3.Connection) -> Encoder | None:
    """Whose vectors the records have; None before the first record."""
    row = connection.execute("SELECT sha256, dimension FROM encoder").fetchone()
    return None if row is None else Encoder(sha256=row[0], dimension=row[1])


def ids_after(connection: sqlite3.Connection, after: str, limit: int) -> list[str]:
    """At most ``limit`` ids after one, in the order of their UTF-8 bytes, which is SQLite's of texts."""
    rows = connection.execute("SELECT id FROM records WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
    return [row[0] for row in rows]


def keys_of(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, int]:
    """The keys of those ids that are there."""
    return dict(connection.execute(f"SELECT id, key FROM records WHERE id IN ({_marks(ids)})", ids).fetchall())


def names(connection: sqlite3.Connection, keys: Keys) -> list[str]:
    """The ids of live keys, in their order."""
    rows = _in_order(connection, "r.id, s.id", keys)
    for key, (id_, checksum) in zip(keys.tolist(), rows, strict=True):
        if checksums.of_id(key, id_) != checksum:
            raise damaged(f"the id of record {key}")
    return [row[0] for row in rows]


def names_and_texts(connection: sqlite3.Connection, keys: Keys) -> tuple[list[str], list[str], list[str]]:
    """Ids, titles and texts of live keys, in their order."""
    rows = _in_order(connection, "r.id, r.title, r.text, s.id, s.content", keys)
    for key, (id_, title, text, id_checksum, checksum) in zip(keys.tolist(), rows, strict=True):
        if checksums.of_id(key, id_) != id_checksum:
            raise damaged(f"the id of record {key}")
        if checksums.of_content(title, text) != checksum:
            raise damaged(f"the text of record {id_!r}")
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def metadata_of(connection: sqlite3.Connection, keys: Keys) -> list[Metadata]:
    """The metadata of live keys, in their order."""
    rows = _in_order(connection, "r.metadata, s.metadata", keys)
    for key, (stored, checksum) in zip(keys.tolist(), rows, strict=True):
        if checksums.of_text(stored) != checksum:
            raise damaged(f"the metadata of record {key}")
    return [_metadata(str(key), row[0]) for key, row in zip(keys.tolist(), rows, strict=True)]


def records_of(
    connection: sqlite3.Connection, ids: Sequence[str], *, include_texts: bool, include_vectors: bool
) -> dict[str, StoredRecord]:
    """Records by id; those that are not there are absent."""
    columns = "key, r.id, s.id, content_sha256"
    columns += ", title, text, r.metadata" if include_texts else ", '', '', '{}'"
    columns += ", v.vector, s.vector" if include_vectors else ", NULL, NULL"
    source = "records AS r LEFT JOIN checksums AS s USING (key)"
    source += " JOIN vectors AS v USING (key)" if include_vectors else ""
    rows = connection.execute(f"SELECT {columns} FROM {source} WHERE r.id IN ({_marks(ids)})", ids).fetchall()
    found = {}
    for key, id_, id_checksum, digest, title, text, metadata, vector, vector_checksum in rows:
        if checksums.of_id(key, id_) != id_checksum:
            raise damaged(f"the id of record {key}")
        fields = _metadata(repr(id_), metadata)
        if include_texts and content_sha256(title, text, fields) != digest:
            raise damaged(f"the content of record {id_!r}")
        if include_vectors and checksums.of_vector(vector) != vector_checksum:
            raise damaged(f"the vector of record {id_!r}")
        found[id_] = StoredRecord(
            record=Record(id=id_, title=title, text=text, metadata=fields),
            content_sha256=digest,
            vector=None if vector is None else np.frombuffer(vector, "<f2"),
        )
    return found


def vector_checksums(connection: sqlite3.Connection, path: Path, count: int) -> tuple[Keys, Checksums]:
    """Keys of all records, ascending, and the checksums of their vectors, uint32 [n].

    Raises:
        IndexFolderError: They are not of as many as there are records.
    """
    keys = np.empty(count, np.int64)
    sums = np.empty(count, np.uint32)
    filled = 0
    with closing(connection.execute("SELECT key, vector FROM checksums ORDER BY key")) as cursor:
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            end = filled + len(rows)
            if end > count:
                break
            keys[filled:end] = [row[0] for row in rows]
            sums[filled:end] = [row[1] for row in rows]
            filled = end
    if rows or filled != count:
        raise IndexFolderError(f"{path} is corrupt: {count} records but other checksums")
    return keys, sums


def load_vectors(connection: sqlite3.Connection, path: Path, keys: Keys, dimension: int) -> VectorSegment:
    """Reads the vectors of the last keys.

    Args:
        connection: To the store.
        path: Its file, for errors.
        keys: The greatest keys that have one, ascending.
        dimension: The vectors' dimension d.

    Raises:
        IndexFolderError: A vector is missing, is not what was stored, has another size or is not finite.
    """
    segment = VectorSegment.empty(dimension, len(keys))
    filled = 0
    for found, packed in vectors_from(connection, path, int(keys[0]) if len(keys) else 0, dimension):
        end = filled + len(found)
        if found != keys[filled:end].tolist():
            filled = -1
            break
        segment.vectors[filled:end] = packed
        filled = end
    if filled != len(keys):
        raise IndexFolderError(f"{path} is corrupt: there are other vectors than records")
    return segment


def vectors_from(
    connection: sqlite3.Connection, path: Path, first: int, dimension: int
) -> Iterator[tuple[list[int], HalfMatrix]]:
    """Reads vectors from a key on, compared with their checksums: keys, ascending, and fp16 [n, d], part by part.

    Raises:
        IndexFolderError: A vector is not what was stored, has another size or is not finite.
    """
    statement = (
        "SELECT key, v.vector, s.vector FROM vectors AS v LEFT JOIN checksums AS s USING (key) "
        "WHERE key >= ? ORDER BY key"
    )
    with closing(connection.execute(statement, (first,))) as cursor:
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            if any(len(row[1]) != 2 * dimension for row in rows):
                raise IndexFolderError(f"{path} is corrupt: a vector has not {dimension} components")
            for key, vector, checksum in rows:
                if checksums.of_vector(vector) != checksum:
                    raise IndexFolderError(f"{path}: {damaged(f'the vector of record {key}')}")
            packed = np.frombuffer(b"".join(row[1] for row in rows), "<f2").reshape(len(rows), dimension)
            if not np.isfinite(packed).all():
                raise IndexFolderError(f"{path} is corrupt: a stored vector is not finite")
            yield [row[0] for row in rows], packed


def _in_order(connection: sqlite3.Connection, columns: str, keys: Keys) -> list[tuple[Any, ...]]:
    wanted = keys.tolist()
    source = "records AS r LEFT JOIN checksums AS s USING (key)"
    rows = connection.execute(f"SELECT key, {columns} FROM {source} WHERE key IN ({_marks(wanted)})", wanted).fetchall()
    by_key = {row[0]: row[1:] for row in rows}
    for key in wanted:
        if key not in by_key:
            raise damaged(f"record {key}")
    return [by_key[key] for key in wanted]


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


def _metadata(name: str, stored: str) -> Metadata:
    try:
        return read_metadata(stored)
    except ValueError as error:
        raise damaged(f"the metadata of record {name}") from error
