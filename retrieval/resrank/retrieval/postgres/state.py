"""What a collection is at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from resrank.core.errors import CollectionNotFoundError
from resrank.core.metadata import FieldType
from resrank.retrieval.postgres.schema import HNSW_INDEX, Connection, collection_schema
from resrank.retrieval.quota import Quota
from resrank.retrieval.records import Encoder

_COLUMNS = "encoder_sha256, dimension, records, bytes, terms, last_key, changes, quota_records, quota_bytes"


@dataclass(frozen=True, slots=True)
class CollectionState:
    """A collection's row in the catalog.

    Attributes:
        number: Which it is; its schema is named by it.
        encoder: The encoder that it belongs to, None while nothing was ever stored.
        records: Records in it.
        bytes: What they take, as the quota counts.
        terms: Terms of all its documents together.
        last_key: The greatest key that was ever given.
        changes: Writes so far.
        quota: What it may hold.
        indexed: Whether its HNSW index is ready.
    """

    number: int
    encoder: Encoder | None
    records: int
    bytes: int
    terms: int
    last_key: int
    changes: int
    quota: Quota
    indexed: bool


def read_state(connection: Connection, number: int, *, lock: bool = False) -> CollectionState:
    """Reads a collection's state.

    Args:
        connection: Inside a transaction.
        number: The collection.
        lock: Whether to be the only writer until the transaction ends: the next one waits here, wherever it runs.

    Raises:
        CollectionNotFoundError: It was dropped.
    """
    row = connection.execute(
        f"SELECT {_COLUMNS}, (SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)) "
        f"FROM resrank.collections WHERE number = %s{' FOR UPDATE' if lock else ''}",
        (f"resrank_{number}.{HNSW_INDEX}", number),
    ).fetchone()
    if row is None:
        raise CollectionNotFoundError("the collection was dropped meanwhile")
    sha256, dimension, records, bytes_, terms, last_key, changes, quota_records, quota_bytes, indexed = row
    return CollectionState(
        number=number,
        encoder=None if sha256 is None else Encoder(sha256, dimension),
        records=records,
        bytes=bytes_,
        terms=terms,
        last_key=last_key,
        changes=changes,
        quota=Quota(quota_records, quota_bytes),
        indexed=bool(indexed),
    )


def read_fields(connection: Connection, number: int) -> dict[str, FieldType]:
    """The fields that the metadata of a collection's records has, by name."""
    schema = collection_schema(number).as_string(connection)
    rows = connection.execute(f"SELECT name, type FROM {schema}.fields ORDER BY name").fetchall()
    return {name: FieldType(kind) for name, kind in rows}
