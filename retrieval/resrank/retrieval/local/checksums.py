"""Checksums of what is stored, so that a flipped bit is an error and never an answer.

SQLite notices damage to its own structure, but not to what it keeps. A CRC-32 finds every burst of up to 32 bits, at
less than a microsecond for a passage: the digests of contents would cost a search more than it may.
"""

from __future__ import annotations

import sqlite3
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import RetrievalError
from resrank.retrieval.records import HalfMatrix

Checksums = NDArray[np.uint32]

SCHEMA = """
CREATE TABLE checksums(
    key INTEGER PRIMARY KEY REFERENCES records(key),
    id INTEGER NOT NULL,
    content INTEGER NOT NULL,
    vector INTEGER NOT NULL
);
"""

METADATA_SCHEMA = "ALTER TABLE checksums ADD COLUMN metadata INTEGER NOT NULL DEFAULT 0;"
"""Since searches return metadata."""

MIGRATION = f"""
{SCHEMA}
INSERT INTO checksums SELECT key, checksum_id(key, id), checksum_content(title, text), checksum_vector(vector)
    FROM records JOIN vectors USING (key);
"""
"""For stores without checksums: of what they hold now."""


def of_id(key: int, id_: str) -> int:
    """Of a record's id under its key."""
    return zlib.crc32(id_.encode(), zlib.crc32(key.to_bytes(8, "little")))


def of_content(title: str, text: str) -> int:
    """Of what a search may return of a record beside its id."""
    return zlib.crc32(text.encode(), zlib.crc32(title.encode() + b"\0"))


def of_text(text: str) -> int:
    """Of metadata as it is stored."""
    return zlib.crc32(text.encode())


def of_vector(packed: bytes | memoryview) -> int:
    """Of a vector as it is stored: little-endian fp16."""
    return zlib.crc32(packed)


def of_vectors(vectors: HalfMatrix) -> Checksums:
    """Of each row of fp16 [n, d], uint32 [n]."""
    rows = np.ascontiguousarray(vectors, "<f2").view(np.uint8).reshape(len(vectors), 2 * vectors.shape[1])
    return np.fromiter((zlib.crc32(row) for row in rows), np.uint32, len(rows))


def register(connection: sqlite3.Connection) -> None:
    """Gives a connection the functions that the migrations use."""
    functions: tuple[tuple[str, int, Any], ...] = (
        ("checksum_id", 2, of_id),
        ("checksum_content", 2, of_content),
        ("checksum_vector", 1, of_vector),
        ("checksum_text", 1, of_text),
    )
    for name, arguments, function in functions:
        connection.create_function(name, arguments, function, deterministic=True)


def damaged(what: str) -> RetrievalError:
    """The error for something that is not what was stored."""
    return RetrievalError(
        f"{what} is damaged in the index: `resrank index verify` lists what is; restore the index or store it again"
    )
