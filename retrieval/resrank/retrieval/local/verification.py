"""Reads everything that an index holds and compares it with what was stored."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resrank.core.errors import IndexFolderError
from resrank.core.metadata import Metadata, read_metadata, type_of
from resrank.core.passage import content_sha256
from resrank.retrieval import quota
from resrank.retrieval.local import checksums, lexical, snapshot
from resrank.retrieval.local.catalog_file import CATALOG_FILE, COLLECTIONS_FOLDER, CatalogFile
from resrank.retrieval.local.lock import FolderLock
from resrank.retrieval.local.metadata_index import StoredValue, stored_values
from resrank.retrieval.local.schema import APPLICATION_ID, SCHEMA_VERSION, STORE_FILE

_RECORDS = """
SELECT r.key, r.id, r.title, r.text, r.metadata, r.content_sha256, v.vector, s.id, s.content,
    s.metadata, s.vector
FROM records AS r LEFT JOIN vectors AS v USING (key) LEFT JOIN checksums AS s USING (key) ORDER BY key
"""
_ORPHANS = """
SELECT count(*) FROM (SELECT key FROM vectors UNION SELECT key FROM checksums)
    WHERE key NOT IN (SELECT key FROM records)
"""
_VALUES = """
SELECT key, name, value FROM metadata_values LEFT JOIN metadata_fields USING (field) ORDER BY key
"""

_Indexed = set[tuple[str | None, StoredValue]]
"""A record's rows in the index of metadata: names and values."""


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        records: How many records were compared.
        problems: A sentence for each thing that is not what was stored; empty when all is well.
    """

    records: int
    problems: tuple[str, ...]


def verify(folder: Path) -> Verification:
    """Verifies an index that no process serves, with all its collections; changes nothing.

    The database's structure, each record's content, id and vector, the lexical index against the texts, the index of
    metadata against the metadata, and the snapshot of the dense index against the vectors. Reads the whole folder.

    Args:
        folder: The index folder.

    Raises:
        IndexFolderError: It is no index folder, of another schema, or owned by another process.
    """
    found = _verify_folder(folder)
    if not (folder / CATALOG_FILE).exists():
        return found
    with closing(CatalogFile.open(folder)) as file:
        places = file.collections()
    records, problems = found.records, list(found.problems)
    for name, place in places.items():
        try:
            of_collection = _verify_folder(folder / COLLECTIONS_FOLDER / place)
        except IndexFolderError as error:
            of_collection = Verification(0, (str(error),))
        records += of_collection.records
        problems += [f"collection {name!r}: {problem}" for problem in of_collection.problems]
    return Verification(records, tuple(problems))


def _verify_folder(folder: Path) -> Verification:
    path = folder / STORE_FILE
    if not path.is_file():
        raise IndexFolderError(f"{folder} is not an index folder: it holds no {STORE_FILE}")
    if path.stat().st_size == 0:
        return Verification(0, (f"{path} is empty, its content was lost",))
    lock = FolderLock.acquire(folder)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            lexical.register(connection)
            return _verify(folder, connection)
    except sqlite3.DatabaseError as error:
        return Verification(0, (f"{path} cannot be read: {error}",))
    finally:
        lock.release()


def _verify(folder: Path, connection: sqlite3.Connection) -> Verification:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if (application_id, version) != (APPLICATION_ID, SCHEMA_VERSION):
        raise IndexFolderError(
            f"{folder / STORE_FILE} has schema version {version}, and this release verifies {SCHEMA_VERSION}: serve it "
            "once with this release, which brings it there"
        )
    problems = [f"database: {row[0]}" for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    problems += _lexical_problems(connection)
    encoder = connection.execute("SELECT dimension FROM encoder").fetchone()
    keys: list[int] = []
    sums: list[int] = []
    count = 0
    indexed = _IndexedMetadata(connection)
    for row in connection.execute(_RECORDS):
        count += 1
        problems += _record_problems(row, 0 if encoder is None else encoder[0])
        problems += indexed.problems(row)
        keys.append(row[0])
        sums.append(row[10] or 0)
    problems += indexed.problems_at_end(connection)
    (orphans,) = connection.execute(_ORPHANS).fetchone()
    if orphans:
        problems.append(f"{orphans} vectors or checksums belong to no record")
    (counted,), (taken,) = connection.execute("SELECT bytes FROM usage"), connection.execute(quota.TAKEN)
    if counted != taken and not problems:  # what is damaged takes other bytes, which is no problem of its own
        problems.append(f"the quota counts {counted[0]} bytes, the records take {taken[0]}")
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
    problem = snapshot.problem(
        folder, np.array(keys, np.int64), np.array(sums, np.uint32), last_key=last[0] if last else 0
    )
    if problem is not None:
        problems.append(f"{snapshot.SNAPSHOT_FILE} would not be used, and built anew at the next start: {problem}")
    return Verification(count, tuple(problems))


def _lexical_problems(connection: sqlite3.Connection) -> list[str]:
    connection.execute("BEGIN IMMEDIATE")  # FTS5 takes the question as a write
    try:
        connection.execute("INSERT INTO lexical(lexical, rank) VALUES ('integrity-check', 1)")
    except sqlite3.DatabaseError as error:
        return [f"lexical index: {error}"]
    finally:
        connection.execute("ROLLBACK")
    return []


def _record_problems(row: tuple[object, ...], dimension: int) -> list[str]:
    key, id_, title, text, metadata, digest, vector, id_checksum, *content_checksums, vector_checksum = row
    if not (isinstance(key, int) and all(isinstance(value, str) for value in (id_, title, text, metadata))):
        return [f"record {key}: a text is none"]
    name = f"record {key} ({id_!r})"
    problems = []
    if checksums.of_id(key, str(id_)) != id_checksum:
        problems.append(f"{name}: its id is damaged")
    try:
        whole = content_sha256(str(title), str(text), read_metadata(str(metadata))) == digest
    except ValueError:
        whole = False
    if not whole or content_checksums != [
        checksums.of_content(str(title), str(text)),
        checksums.of_text(str(metadata)),
    ]:
        problems.append(f"{name}: its title, text, metadata or their digest is damaged")
    if not isinstance(vector, bytes):
        problems.append(f"{name}: its vector is missing")
    elif len(vector) != 2 * dimension or checksums.of_vector(vector) != vector_checksum:
        problems.append(f"{name}: its vector is damaged")
    return problems


class _IndexedMetadata:
    """Compares the index of metadata with the records, both in the order of keys."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._rows: Iterator[tuple[int, str | None, StoredValue]] = iter(connection.execute(_VALUES))
        self._next = next(self._rows, None)
        self._fields: Counter[tuple[str, str]] = Counter()  # names and types, and how many records have them
        self._strays = 0

    def problems(self, row: tuple[object, ...]) -> list[str]:
        """What is wrong with the rows of the next record."""
        key, id_, metadata = row[0], row[1], row[4]
        found: _Indexed = set()
        while self._next is not None and isinstance(key, int) and self._next[0] <= key:
            if self._next[0] == key:
                found.add(self._next[1:])
            else:
                self._strays += 1
            self._next = next(self._rows, None)
        try:
            stored: Metadata = read_metadata(str(metadata))
        except ValueError:  # which is told already
            return []
        self._fields.update((name, type_of(value).value) for name, value in stored.items())
        wanted: _Indexed = {(name, one) for name, value in stored.items() for one in stored_values(value)}
        return [] if wanted == found else [f"record {key} ({id_!r}): the index of metadata has other values of it"]

    def problems_at_end(self, connection: sqlite3.Connection) -> list[str]:
        """What is left over, and fields that are not what the records have."""
        problems = []
        self._strays += (self._next is not None) + sum(1 for _ in self._rows)
        if self._strays:
            problems.append(f"index of metadata: {self._strays} values belong to no record")
        rows = connection.execute("SELECT name, type, records FROM metadata_fields").fetchall()
        if {(name, kind): count for name, kind, count in rows} != self._fields:
            problems.append("index of metadata: its fields, their types or counts are not the records'")
        return problems
