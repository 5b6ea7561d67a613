"""The tables: one schema for the catalog, and one for each collection."""

from __future__ import annotations

import logging
from typing import Any, TypeAlias

import psycopg
from psycopg import sql

from resrank.core.collection_names import DEFAULT_COLLECTION
from resrank.core.errors import RetrievalError

logger = logging.getLogger(__name__)

Connection: TypeAlias = psycopg.Connection[Any]

SCHEMA_VERSION = 1
MAX_DIMENSION = 16_000
"""Components of a `halfvec`."""

MAX_INDEXED_DIMENSION = 4_000
"""Components of a `halfvec` in an HNSW index."""

HNSW_INDEX = "vectors_hnsw"

_LEAST_PGVECTOR = (0, 8)
_SETUP_LOCK = 0x52655352  # "ReSR": sidecars that start at once on a new database take turns

_CATALOG = """
CREATE SCHEMA resrank;
CREATE TABLE resrank.version (number integer NOT NULL);
CREATE TABLE resrank.collections (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    encoder_sha256 text,
    dimension integer,
    records bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    terms bigint NOT NULL DEFAULT 0,
    last_key bigint NOT NULL DEFAULT 0,
    changes bigint NOT NULL DEFAULT 0,
    quota_records bigint NOT NULL DEFAULT 0,
    quota_bytes bigint NOT NULL DEFAULT 0
);
COMMENT ON COLUMN resrank.collections.terms IS 'of all documents together, for BM25';
COMMENT ON COLUMN resrank.collections.changes IS 'writes so far: tells whoever remembers something of the records';
CREATE TABLE resrank.aliases (
    name text COLLATE "C" PRIMARY KEY,
    collection bigint NOT NULL REFERENCES resrank.collections(number),
    triton text NOT NULL
);
"""

# Vectors stand apart from the texts, so that looking through all of them reads nothing else. A posting has its
# document's length, so that one look at the index scores it.
_COLLECTION = """
CREATE SCHEMA {schema};
CREATE TABLE {schema}.records (
    key bigint PRIMARY KEY,
    id text COLLATE "C" NOT NULL UNIQUE,
    title text NOT NULL,
    text text NOT NULL,
    metadata text NOT NULL,
    fields jsonb NOT NULL,
    content_sha256 bytea NOT NULL,
    bytes integer NOT NULL,
    terms text[] COLLATE "C" NOT NULL,
    length integer NOT NULL
);
CREATE INDEX records_fields ON {schema}.records USING gin (fields jsonb_path_ops);
CREATE TABLE {schema}.postings (
    term text COLLATE "C",
    key bigint,
    count integer NOT NULL,
    length integer NOT NULL,
    PRIMARY KEY (term, key) INCLUDE (count, length)
);
CREATE TABLE {schema}.fields (
    name text COLLATE "C" PRIMARY KEY,
    type text NOT NULL,
    records bigint NOT NULL
);
"""
_VECTORS = "CREATE TABLE {schema}.vectors (key bigint PRIMARY KEY, vector halfvec({dimension}) NOT NULL)"
_IN_PLACE = "ALTER TABLE {schema}.vectors ALTER COLUMN vector SET STORAGE PLAIN"
_IN_PLACE_DIMENSION = 3_500
"""Up to here a vector fits into a page of 8 KiB with its key, and need not be fetched from elsewhere."""


def prepare(connection: Connection) -> None:
    """Makes the catalog in a new database, and checks one that is there.

    Raises:
        RetrievalError: The database cannot be used; the message says what would help.
    """
    (encoding,) = connection.execute("SHOW server_encoding").fetchone() or ("",)
    if encoding != "UTF8":
        raise RetrievalError(f"the database's encoding is {encoding}: make one with ENCODING 'UTF8'")
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SETUP_LOCK,))
        _require_pgvector(connection)
        (there,) = connection.execute("SELECT to_regnamespace('resrank') IS NOT NULL").fetchone() or (False,)
        if not there:
            connection.execute(_CATALOG)
            connection.execute("INSERT INTO resrank.version VALUES (%s)", (SCHEMA_VERSION,))
            made = connection.execute(
                "INSERT INTO resrank.collections (name) VALUES (%s) RETURNING number", (DEFAULT_COLLECTION,)
            )
            make_collection(connection, *made.fetchone() or ())
        (version,) = connection.execute("SELECT max(number) FROM resrank.version").fetchone() or (None,)
    if version != SCHEMA_VERSION:
        raise RetrievalError(
            f"the store has schema version {version}, this release reads {SCHEMA_VERSION}: use its own"
        )
    if connection.execute("SHOW fsync").fetchone() == ("off",):
        logger.warning("the database does not flush to its disk (fsync = off): its crash loses what was acknowledged")


def collection_schema(number: int) -> sql.Identifier:
    """The schema of a collection."""
    return sql.Identifier(f"resrank_{number}")


def make_collection(connection: Connection, number: int) -> None:
    """Makes the tables of an empty collection, all but that of the vectors."""
    connection.execute(sql.SQL(_COLLECTION).format(schema=collection_schema(number)))


def make_vectors(connection: Connection, number: int, dimension: int) -> None:
    """Makes the table of a collection's vectors, once their dimension is known."""
    schema = collection_schema(number)
    connection.execute(sql.SQL(_VECTORS).format(schema=schema, dimension=sql.Literal(dimension)))
    if dimension <= _IN_PLACE_DIMENSION:
        connection.execute(sql.SQL(_IN_PLACE).format(schema=schema))


def _require_pgvector(connection: Connection) -> None:
    found = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    if found is None:
        offered = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone()
        if offered is None:
            raise RetrievalError("the server has no pgvector: install it beside PostgreSQL")
        connection.execute("CREATE EXTENSION vector")
        found = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    version = "" if found is None else str(found[0])
    if tuple(int(part) for part in version.split(".")[:2]) < _LEAST_PGVECTOR:
        raise RetrievalError(f"the database has pgvector {version}: ALTER EXTENSION vector UPDATE to 0.8 or later")
