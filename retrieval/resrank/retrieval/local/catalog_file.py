"""The file that says which collections and aliases a folder has: one small SQLite database, the truth about names."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from resrank.core.durability import flush
from resrank.core.errors import IndexFolderError
from resrank.retrieval.catalog import Alias
from resrank.retrieval.errors import StoreWriteError

CATALOG_FILE = "catalog.sqlite3"
COLLECTIONS_FOLDER = "collections"

_UNFINISHED = f"{CATALOG_FILE}.new"
_APPLICATION_ID = 0x52655343  # "ReSC", in the file's header
_VERSION = 1
_SCHEMA = f"""
BEGIN;
-- Folders lie in `{COLLECTIONS_FOLDER}`; the default collection, which is the index folder itself, is not among them.
CREATE TABLE collections(name TEXT PRIMARY KEY, folder TEXT NOT NULL UNIQUE);
CREATE TABLE aliases(name TEXT PRIMARY KEY, collection TEXT NOT NULL, triton TEXT NOT NULL);
-- Folders that are made or removed at this moment, or were when the process died: of no use to anybody.
CREATE TABLE leftovers(folder TEXT PRIMARY KEY);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
COMMIT;
"""


class CatalogFile:
    """Names and what they stand for, on the disk when a method returns. Used by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Opens the file of an index folder, making an empty one where there is none yet.

        Args:
            folder: The index folder, locked by this process.

        Raises:
            IndexFolderError: It is corrupt, foreign or of a later release, or was lost while there are collections.
        """
        path = folder / CATALOG_FILE
        connection: sqlite3.Connection | None = None
        try:
            if not path.exists():
                _make(folder)
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            connection.execute("PRAGMA synchronous = FULL")
        except (sqlite3.Error, OSError) as error:
            if connection is not None:
                connection.close()
            raise IndexFolderError(f"{path} cannot be opened ({error}): restore it") from error
        if (application_id, version, verdict) != (_APPLICATION_ID, _VERSION, "ok"):
            connection.close()
            raise IndexFolderError(f"{path} is damaged, another program's or a later release's: restore it")
        return cls(connection, path)

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def collections(self) -> dict[str, str]:
        """Name to folder."""
        return dict(self._connection.execute("SELECT name, folder FROM collections ORDER BY name"))

    def aliases(self) -> dict[str, Alias]:
        """Name to alias."""
        rows = self._connection.execute("SELECT name, collection, triton FROM aliases ORDER BY name")
        return {row[0]: Alias(*row) for row in rows}

    def leftovers(self) -> list[str]:
        """Folders that are to be removed."""
        return [row[0] for row in self._connection.execute("SELECT folder FROM leftovers")]

    def begin_collection(self, folder: str) -> None:
        """Notes a folder as a leftover for as long as it is no collection, if it is not one already."""
        self._write(("INSERT OR IGNORE INTO leftovers(folder) VALUES (?)", (folder,)))

    def add_collection(self, name: str, folder: str) -> None:
        """Makes a collection of a folder that is complete."""
        self._write(
            ("DELETE FROM leftovers WHERE folder = ?", (folder,)),
            ("INSERT INTO collections(name, folder) VALUES (?, ?)", (name, folder)),
        )

    def remove_collection(self, name: str, folder: str) -> None:
        """Makes a leftover of a collection."""
        self._write(
            ("DELETE FROM collections WHERE name = ?", (name,)),
            ("INSERT OR IGNORE INTO leftovers(folder) VALUES (?)", (folder,)),
        )

    def forget(self, folder: str) -> None:
        """Called when a leftover is gone."""
        self._write(("DELETE FROM leftovers WHERE folder = ?", (folder,)))

    def set_alias(self, alias: Alias) -> None:
        """Makes an alias, or points it elsewhere."""
        self._write(
            (
                "INSERT OR REPLACE INTO aliases(name, collection, triton) VALUES (?, ?, ?)",
                (alias.name, alias.collection, alias.triton),
            )
        )

    def delete_alias(self, name: str) -> None:
        """Removes an alias."""
        self._write(("DELETE FROM aliases WHERE name = ?", (name,)))

    def _write(self, *statements: tuple[str, tuple[str, ...]]) -> None:
        """Runs statements in one transaction.

        Raises:
            StoreWriteError: The disk refused; nothing has changed.
        """
        try:
            with self._transaction():
                for statement, parameters in statements:
                    self._connection.execute(statement, parameters)
        except sqlite3.Error as error:
            raise StoreWriteError(f"the disk refused to write {self._path} ({error}): nothing has changed") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _make(folder: Path) -> None:
    """Makes an empty catalog, whole or not at all: a file without content is always a lost one."""
    kept = folder / COLLECTIONS_FOLDER
    if kept.is_dir() and any(kept.iterdir()):
        raise IndexFolderError(f"{folder} holds collections but no {CATALOG_FILE}, which names them: restore it")
    unfinished = folder / _UNFINISHED
    for rest in (unfinished, unfinished.with_name(f"{_UNFINISHED}-journal")):
        rest.unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_CREAT | os.O_WRONLY, 0o600))
    connection = sqlite3.connect(unfinished, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
    finally:
        connection.close()
    unfinished.rename(folder / CATALOG_FILE)
    flush(folder)
