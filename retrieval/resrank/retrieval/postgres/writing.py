"""What a write does to the tables of a collection, inside its transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgvector import HalfVector
from psycopg import Cursor, sql
from psycopg.types.json import Jsonb

from resrank.core.errors import InvalidInputError, Place
from resrank.core.metadata import FieldType, type_of, write_metadata
from resrank.core.passage import content_sha256
from resrank.retrieval.errors import other_type
from resrank.retrieval.postgres.schema import Connection, collection_schema
from resrank.retrieval.postgres.state import CollectionState
from resrank.retrieval.records import Record, RecordBatch

_LONGEST_NAME = 2048  # bytes; PostgreSQL's indexes take a third of a page, 2704 with what is around


def refuse_unstorable(records: Sequence[Record]) -> None:
    """Refuses records that PostgreSQL has no place for.

    Raises:
        InvalidInputError: A title, text or metadata holds a NUL character, or a name in the metadata is too long.
    """
    for index, record in enumerate(records):
        for name in record.metadata:
            if (size := len(name.encode())) > _LONGEST_NAME:
                raise InvalidInputError(
                    Place("records", (index,)),
                    f"a name in the metadata of id {record.id!r} longer than PostgreSQL takes, in bytes",
                    limit=_LONGEST_NAME,
                    value=size,
                )
        parts = {"title": record.title, "text": record.text, "metadata": "".join(_strings(record))}
        for what, part in parts.items():
            if "\0" in part:
                raise InvalidInputError(
                    Place("records", (index,)),
                    f"{what} of id {record.id!r} holds a NUL character, which PostgreSQL cannot store",
                )


def write(
    connection: Connection, state: CollectionState, batch: RecordBatch, terms: Sequence[Mapping[str, int]]
) -> int:
    """Stores a batch, replacing records of the same ids.

    Args:
        connection: Inside the transaction.
        state: The collection, locked.
        batch: What is stored.
        terms: How often each term stands in each record.

    Returns:
        How many records were replaced.

    Raises:
        QuotaExceededError: The collection would grow beyond its quota.
        InvalidInputError: A field of metadata has another type elsewhere.
    """
    tables = _Tables(connection, state.number)
    old = tables.remove([record.id for record in batch.records])
    sizes = [_size(record, batch.encoder.dimension) for record in batch.records]
    lengths = [sum(counts.values()) for counts in terms]
    records = state.records - len(old.ids) + len(batch.records)
    taken = state.bytes - old.bytes + sum(sizes)
    state.quota.check(records, taken)
    tables.add_fields(batch.records)
    keys = range(state.last_key + 1, state.last_key + 1 + len(batch.records))
    tables.copy(
        "records(key, id, title, text, metadata, fields, content_sha256, bytes, terms, length)",
        ["int8", "text", "text", "text", "text", "jsonb", "bytea", "int4", "text[]", "int4"],
        (
            (
                key,
                record.id,
                record.title,
                record.text,
                write_metadata(record.metadata),
                Jsonb(dict(record.metadata)),
                content_sha256(record.title, record.text, record.metadata),
                size,
                list(counts),
                length,
            )
            for key, record, size, counts, length in zip(keys, batch.records, sizes, terms, lengths, strict=True)
        ),
    )
    tables.copy(
        "vectors(key, vector)",
        ["int8", "halfvec"],
        ((key, HalfVector(vector)) for key, vector in zip(keys, batch.vectors, strict=True)),
    )
    tables.copy(
        "postings(term, key, count, length)",
        ["text", "int8", "int4", "int4"],
        # In the order of the index, which then is filled page by page.
        sorted(
            (term, key, count, length)
            for key, counts, length in zip(keys, terms, lengths, strict=True)
            for term, count in counts.items()
        ),
    )
    connection.execute(
        "UPDATE resrank.collections SET encoder_sha256 = %s, dimension = %s, records = %s, bytes = %s, terms = %s, "
        "last_key = %s, changes = changes + 1 WHERE number = %s",
        (
            batch.encoder.sha256,
            batch.encoder.dimension,
            records,
            taken,
            state.terms - old.terms + sum(lengths),
            keys[-1],
            state.number,
        ),
    )
    return len(old.ids)


def remove(connection: Connection, state: CollectionState, ids: Sequence[str]) -> set[str]:
    """Removes records.

    Args:
        connection: Inside the transaction.
        state: The collection, locked.
        ids: Which; those that are not there are left out.

    Returns:
        The ids that were there.
    """
    old = _Tables(connection, state.number).remove(ids)
    if old.ids:
        connection.execute(
            "UPDATE resrank.collections SET records = records - %s, bytes = bytes - %s, terms = terms - %s, "
            "changes = changes + 1 WHERE number = %s",
            (len(old.ids), old.bytes, old.terms, state.number),
        )
    return old.ids


@dataclass(frozen=True, slots=True)
class _Removed:
    """What went: which ids, and what they took in bytes and terms."""

    ids: set[str]
    bytes: int = 0
    terms: int = 0


class _Tables:
    """The tables of one collection, written to."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._schema = collection_schema(number)

    def remove(self, ids: Sequence[str]) -> _Removed:
        rows = self._run(
            "SELECT key, id, bytes, length FROM {schema}.records WHERE id = ANY(%s) ORDER BY key", (possible_ids(ids),)
        ).fetchall()
        if not rows:
            return _Removed(set())
        keys = [row[0] for row in rows]
        counts = self._run(
            "SELECT name, count(*) FROM {schema}.records, jsonb_object_keys(fields) AS name WHERE key = ANY(%s) "
            "GROUP BY name",
            (keys,),
        ).fetchall()
        self._count_fields({name: -count for name, count in counts}, {})
        self._run(
            "DELETE FROM {schema}.postings USING (SELECT key, unnest(terms) AS term FROM {schema}.records "
            "WHERE key = ANY(%s)) AS old WHERE postings.term = old.term AND postings.key = old.key",
            (keys,),
        )
        self._run("DELETE FROM {schema}.vectors WHERE key = ANY(%s)", (keys,))
        self._run("DELETE FROM {schema}.records WHERE key = ANY(%s)", (keys,))
        return _Removed({row[1] for row in rows}, sum(row[2] for row in rows), sum(row[3] for row in rows))

    def add_fields(self, records: Sequence[Record]) -> None:
        """Counts the fields of new records.

        Raises:
            InvalidInputError: One has another type in another record.
        """
        names = sorted({name for record in records for name in record.metadata})
        rows = self._run("SELECT name, type FROM {schema}.fields WHERE name = ANY(%s)", (names,)).fetchall()
        types = {name: FieldType(kind) for name, kind in rows}
        counts: Counter[str] = Counter()
        for place, record in enumerate(records):
            for name, value in record.metadata.items():
                kind = types.setdefault(name, type_of(value))
                if kind is not type_of(value):
                    raise other_type(place, record.id, name, type_of(value), kind)
                counts[name] += 1
        self._count_fields(counts, types)

    def copy(self, table: str, types: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
        """Adds rows, by the protocol that is made for many."""
        statement = sql.SQL(f"COPY {{schema}}.{table} FROM STDIN (FORMAT BINARY)").format(schema=self._schema)
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)

    def _count_fields(self, counts: Mapping[str, int], types: Mapping[str, FieldType]) -> None:
        if not counts:
            return
        names = sorted(counts)
        self._run(
            "INSERT INTO {schema}.fields (name, type, records) "
            "SELECT * FROM unnest(%s::text[], %s::text[], %s::int8[]) "
            "ON CONFLICT (name) DO UPDATE SET records = fields.records + excluded.records",
            (names, [types.get(name, "") for name in names], [counts[name] for name in names]),
        )
        # With the last record that has it a field is forgotten, and its type with it.
        self._run("DELETE FROM {schema}.fields WHERE name = ANY(%s) AND records <= 0", (names,))

    def _run(self, statement: str, parameters: tuple[Any, ...]) -> Cursor[Any]:
        return self._connection.execute(sql.SQL(statement).format(schema=self._schema), parameters)


def possible_ids(ids: Sequence[str]) -> list[str]:
    """Ids without those that no record can have: PostgreSQL takes no NUL character, also not to compare with."""
    return [id_ for id_ in ids if "\0" not in id_]


def _size(record: Record, dimension: int) -> int:
    """Bytes of a record and its vector, as :class:`resrank.retrieval.quota.Quota` counts them."""
    parts = (record.id, record.title, record.text, write_metadata(record.metadata))
    return sum(len(part.encode()) for part in parts) + 2 * dimension


def _strings(record: Record) -> Iterable[str]:
    for name, value in record.metadata.items():
        yield name
        if isinstance(value, str):
            yield value
        elif isinstance(value, tuple):
            yield from value
