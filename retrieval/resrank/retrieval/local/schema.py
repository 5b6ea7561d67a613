"""The store's file: its schema, how it is made, and what may be taken for it."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

from resrank.core.durability import flush
from resrank.core.errors import IndexFolderError
from resrank.retrieval import quota
from resrank.retrieval.local import checksums, lexical, metadata_index
from resrank.retrieval.local.lock import LOCK_FILE
from resrank.retrieval.quota import NO_QUOTA, Quota

logger = logging.getLogger(__name__)

STORE_FILE = "store.sqlite3"
SCHEMA_VERSION = 5
APPLICATION_ID = 0x52655352  # "ReSR", in the file's header: tells our databases from other programs'

_UNFINISHED = f"{STORE_FILE}.new"
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
{checksums.SCHEMA}
{quota.SCHEMA}
{checksums.METADATA_SCHEMA}
{metadata_index.SCHEMA}
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""
_MIGRATIONS = {1: lexical.MIGRATION_FROM_1, 2: checksums.MIGRATION, 3: quota.SCHEMA, 4: metadata_index.MIGRATION}
"""From each version to the next."""
_FILLS = {4: metadata_index.fill}
"""What SQL alone cannot do of a migration, in its transaction."""


def refuse_foreign(folder: Path) -> None:
    """Checks that an existing folder may be taken: it is empty or has a store.

    Raises:
        IndexFolderError: It holds something else.
    """
    if (folder / STORE_FILE).exists():
        return
    ours = {LOCK_FILE, _UNFINISHED, f"{_UNFINISHED}-journal", "lost+found"}
    strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in ours)
    if strangers:
        raise IndexFolderError(
            f"{folder} is not an index folder: it holds {strangers[0]} but no {STORE_FILE}; name another"
        )


def make_store(folder: Path, limits: Quota = NO_QUOTA) -> None:
    """Makes an empty store, readable by its owner alone, whole or not at all.

    A file without content is therefore never a new store but always a lost one.

    Args:
        folder: Where.
        limits: What it may hold.

    Raises:
        OSError: The disk refused.
        sqlite3.Error: The same.
    """
    unfinished = folder / _UNFINISHED
    for rest in (unfinished, unfinished.with_name(f"{_UNFINISHED}-journal")):
        rest.unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_CREAT | os.O_WRONLY, 0o600))
    connection = sqlite3.connect(unfinished, isolation_level=None)
    try:
        lexical.register(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        connection.execute("UPDATE usage SET quota_records = ?, quota_bytes = ?", (limits.records, limits.bytes))
    finally:
        connection.close()
    unfinished.rename(folder / STORE_FILE)
    flush(folder)


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Checks whether an open store is one, and brings it to this release's schema.

    Raises:
        IndexFolderError: It is empty, foreign, of a later schema, or corrupt and of an earlier one.
        sqlite3.Error: It is no database, or cannot be written.
    """
    lexical.register(connection)
    checksums.register(connection)
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables:
        raise IndexFolderError(f"{path} is empty, its content was lost: restore it, or remove the folder to start anew")
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID:
        raise IndexFolderError(f"{path} is another program's database: name another index folder")
    if not 1 <= version <= SCHEMA_VERSION:
        raise IndexFolderError(
            f"{path} has schema version {version}, this release reads up to {SCHEMA_VERSION}: build the index anew"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    if version < SCHEMA_VERSION:  # what is damaged must not be made to look whole
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise IndexFolderError(f"{path} is corrupt ({verdict}): restore it or build the index anew")
    for step in range(version, SCHEMA_VERSION):
        logger.info("bringing the index to a new schema", extra={"path": str(path), "from": step, "to": step + 1})
        connection.executescript(f"BEGIN; {_MIGRATIONS[step]}")
        if step in _FILLS:
            _FILLS[step](connection)
        connection.execute(f"PRAGMA user_version = {step + 1}")
        connection.execute("COMMIT")
