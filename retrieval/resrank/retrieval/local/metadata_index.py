"""The index of metadata: which records have which value, kept in the transaction that stores the records."""

from __future__ import annotations

import json
import logging
import sqlite3
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from cachetools import LRUCache

from resrank.core.filters import Comparison, Operator
from resrank.core.metadata import FieldType, MetadataValue, read_metadata, type_of
from resrank.retrieval.errors import other_type
from resrank.retrieval.local import checksums
from resrank.retrieval.records import Keys, Record

logger = logging.getLogger(__name__)

SCHEMA = """
CREATE TABLE metadata_fields(
    field INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    -- How many have it: with the last one the field is forgotten, and its type with it.
    records INTEGER NOT NULL
);
-- A text, a double, or 0 and 1, as it is given: the column has no type. A list has a row for each of its strings, and
-- an empty one an empty blob, which equals no string.
CREATE TABLE metadata_values(
    key INTEGER NOT NULL REFERENCES records(key),
    field INTEGER NOT NULL REFERENCES metadata_fields(field),
    value NOT NULL,
    PRIMARY KEY(key, field, value)
) WITHOUT ROWID;
CREATE INDEX metadata_by_value ON metadata_values(field, value);
"""

MIGRATION = f"""
{SCHEMA}
{checksums.METADATA_SCHEMA}
UPDATE checksums SET metadata = checksum_text((SELECT metadata FROM records WHERE records.key = checksums.key))
    WHERE key IN (SELECT key FROM records);
"""
"""From the schema whose metadata was strings that nobody could search by; :func:`fill` does the rest."""

_ROWS_AT_ONCE = 1000
_MANY = 1000
_REMEMBERED_BYTES = 64 * 1024 * 1024
_COMPARED = {
    Operator.EQ: "=",
    Operator.NE: "=",  # of which the caller takes all others
    Operator.LT: "<",
    Operator.LE: "<=",
    Operator.GT: ">",
    Operator.GE: ">=",
}
_EMPTY_LIST = b""

StoredValue = str | float | int | bytes
"""A value as it stands in a row."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of metadata.

    Attributes:
        number: What its rows call it.
        type: What it holds.
        records: How many have it.
    """

    number: int
    type: FieldType
    records: int


@dataclass(frozen=True, slots=True)
class _Found:
    """Keys that are remembered, and the bytes that they take with what found them."""

    keys: Keys
    bytes: int


FieldChanges = Mapping[str, Field]
"""What a transaction makes of fields, by name; one that no record has any more is forgotten with it."""


class MetadataIndex:
    """Finds records by the values of their metadata. Fields are kept in memory as of the last commit."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute("SELECT name, field, type, records FROM metadata_fields")
        self._fields = {row[0]: Field(row[1], FieldType(row[2]), row[3]) for row in rows}
        self._last = max((field.number for field in self._fields.values()), default=0)
        self._found: LRUCache[Comparison, _Found] = LRUCache(_REMEMBERED_BYTES, getsizeof=lambda found: found.bytes)
        self._finding = threading.Lock()

    @property
    def types(self) -> dict[str, FieldType]:
        """What each field holds."""
        return {name: field.type for name, field in self._fields.items()}

    def stage(
        self, writer: sqlite3.Connection, removed: Sequence[int], added: Sequence[tuple[int, Record]]
    ) -> FieldChanges:
        """Writes what a transaction removes and adds, before the records themselves go.

        Args:
            writer: Has the transaction.
            removed: Keys.
            added: Keys and records, in the order of the request.

        Returns:
            What :meth:`follow` is to be told once the transaction is committed.

        Raises:
            InvalidInputError: A record has a field with another type than the others that have it.
        """
        changes: dict[str, Field] = {}
        for name, count in _counts(writer, removed):
            changes[name] = replace(self._fields[name], records=self._fields[name].records - count)
        writer.executemany("DELETE FROM metadata_values WHERE key = ?", [(key,) for key in removed])
        rows: list[tuple[int, int, StoredValue]] = []
        last = self._last
        for place, (key, record) in enumerate(added):
            for name, value in record.metadata.items():
                field = changes.get(name) or self._fields.get(name)
                if field is None:
                    last += 1
                    field = Field(last, type_of(value), 0)
                elif field.records <= 0:
                    field = replace(field, type=type_of(value))
                elif field.type is not type_of(value):
                    raise other_type(place, record.id, name, type_of(value), field.type)
                changes[name] = replace(field, records=field.records + 1)
                rows += [(key, field.number, stored) for stored in stored_values(value)]
        writer.executemany("INSERT INTO metadata_values(key, field, value) VALUES (?, ?, ?)", rows)
        _write_fields(writer, changes)
        return changes

    def follow(self, changes: FieldChanges) -> None:
        """Takes over what a committed transaction made of the fields, and forgets what it has made stale."""
        with self._finding:
            self._found.clear()
        for name, field in changes.items():
            if field.records > 0:
                self._fields[name] = field
                self._last = max(self._last, field.number)
            else:
                del self._fields[name]

    def keys(self, connection: sqlite3.Connection, comparison: Comparison, among: Keys | None = None) -> Keys:
        """Keys of the records for which a comparison holds; with ``ne`` of those for which it does not.

        What holds for many is remembered until the next write: to list 50,000 takes 13 ms, as one text that SQLite
        makes and NumPy reads, and 50 ms row by row.

        Args:
            connection: A connection to the database.
            comparison: Of a field that there is, with values of its type.
            among: The only records that count; None for all.

        Returns:
            Ascending.
        """
        with self._finding:
            known = self._found.get(comparison)
        if known is not None:
            return known.keys
        # With the plus the values of each record are compared, and not each record looked for under every value.
        where, values = self._where(comparison, "value" if among is None else "+value")
        if among is not None:
            where += " AND key IN (SELECT value FROM json_each(?))"
            values.append(json.dumps(among.tolist()))
        (packed,) = connection.execute(
            f"SELECT group_concat(key) FROM metadata_values WHERE {where}", values
        ).fetchone()
        # A list has several rows.
        keys = np.unique(np.fromstring(packed, np.int64, sep=",")) if packed else np.empty(0, np.int64)
        found = _Found(keys, keys.nbytes + _size_of(comparison))
        if among is None and len(keys) >= _MANY and found.bytes <= _REMEMBERED_BYTES:
            with self._finding:
                self._found[comparison] = found
        return keys

    def are_at_most(self, connection: sqlite3.Connection, count: int, comparison: Comparison) -> bool:
        """Whether :meth:`keys` would find no more than so many, without finding them."""
        where, values = self._where(comparison, "value")
        found = connection.execute(f"SELECT 1 FROM metadata_values WHERE {where} LIMIT 1 OFFSET {count}", values)
        return found.fetchone() is None

    def _where(self, comparison: Comparison, column: str) -> tuple[str, list[StoredValue]]:
        conditions = ["field = ?"]
        if comparison.operator is Operator.IN:
            conditions.append(f"{column} IN ({','.join('?' * len(comparison.values))})")
        elif comparison.operator is not Operator.EXISTS:
            conditions.append(f"{column} {_COMPARED[comparison.operator]} ?")
        values = [value for scalar in comparison.values for value in stored_values(scalar)]
        return " AND ".join(conditions), [self._fields[comparison.field].number, *values]


def _size_of(comparison: Comparison) -> int:
    """Bytes that a comparison takes in memory, about."""
    return sum(map(sys.getsizeof, (comparison, comparison.field, comparison.values, *comparison.values)))


def stored_values(value: MetadataValue) -> list[StoredValue]:
    """What stands in the rows of a value."""
    if isinstance(value, tuple):
        return list(dict.fromkeys(value)) or [_EMPTY_LIST]
    return [int(value) if isinstance(value, bool) else value]


def fill(connection: sqlite3.Connection) -> None:
    """Indexes the metadata of all records, in the transaction that brought the tables.

    What cannot be read was damaged before: `resrank index verify` names it, and nothing is found by it.
    """
    counts: dict[str, Field] = {}
    cursor = connection.execute("SELECT key, metadata FROM records")
    while found := cursor.fetchmany(_ROWS_AT_ONCE):
        rows: list[tuple[int, int, StoredValue]] = []
        for key, stored in found:
            try:
                metadata = read_metadata(stored)
                if any(type_of(value) is not FieldType.STRING for value in metadata.values()):
                    raise ValueError("there was no other type")
            except (ValueError, TypeError):
                logger.warning("the metadata of a record is damaged", extra={"key": key})
                continue
            for name, value in metadata.items():
                field = counts.get(name, Field(len(counts) + 1, FieldType.STRING, 0))
                counts[name] = replace(field, records=field.records + 1)
                rows += [(key, field.number, one) for one in stored_values(value)]
        connection.executemany("INSERT INTO metadata_values(key, field, value) VALUES (?, ?, ?)", rows)
    _write_fields(connection, counts)


def _counts(connection: sqlite3.Connection, keys: Sequence[int]) -> Iterable[tuple[str, int]]:
    """How many of some records have a field, by name."""
    return connection.execute(
        "SELECT name, count(DISTINCT key) FROM metadata_values JOIN metadata_fields USING (field) "
        f"WHERE key IN ({','.join('?' * len(keys))}) GROUP BY field",
        keys,
    ).fetchall()


def _write_fields(connection: sqlite3.Connection, fields: FieldChanges) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO metadata_fields(field, name, type, records) VALUES (?, ?, ?, ?)",
        [(field.number, name, field.type.value, field.records) for name, field in fields.items() if field.records > 0],
    )
    connection.executemany(
        "DELETE FROM metadata_fields WHERE field = ?",
        [(field.number,) for field in fields.values() if field.records <= 0],
    )
