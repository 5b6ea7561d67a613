"""Reads what SQLite holds and nobody has asked for yet: its structure, and every vector against its checksum.

A start that did it first would read the whole file: of a million passages that is gigabytes. So only small stores are
checked before they are served, and large ones meanwhile. Until then nothing is taken on trust either: SQLite refuses
pages that make no sense, what a search returns is compared with its checksum, and the snapshot's digest was compared
before its vectors were searched.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from resrank.core.errors import IndexFolderError
from resrank.retrieval.local.schema import STORE_FILE
from resrank.retrieval.local.stored_records import vectors_from

logger = logging.getLogger(__name__)

CHECKED_FIRST_BYTES = 64 << 20
"""Up to this size a store is checked before it is served: that takes less than a second."""

_PAUSE_S = 0.02
"""Between two parts of the vectors, beside searches."""


def check(folder: Path) -> None:
    """Checks a store.

    Raises:
        IndexFolderError: It is damaged.
    """
    try:
        with closing(_connect(folder)) as connection:
            _check_structure(connection, folder)
            _check_vectors(connection, folder, threading.Event(), 0)
    except sqlite3.Error as error:
        raise IndexFolderError(
            f"{folder / STORE_FILE} is corrupt ({error}): restore it or build the index anew"
        ) from error


class BackgroundCheck:
    """Checks a store in a thread, and remembers what is wrong with its structure.

    A vector that is damaged is told in the log: whoever reads it gets an error, and searches go by the snapshot's.
    """

    def __init__(self, folder: Path) -> None:
        self.problem: str | None = None
        self._folder = folder
        self._stopping = threading.Event()
        self._connection = _connect(folder)
        self._thread = threading.Thread(target=self._run, name="integrity", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it, done or not."""
        self._stopping.set()
        self._connection.interrupt()
        self._thread.join()
        self._connection.close()

    def join(self) -> None:
        """Waits until all has been checked."""
        self._thread.join()

    def _run(self) -> None:
        try:
            try:
                _check_structure(self._connection, self._folder)
            except (IndexFolderError, sqlite3.DatabaseError) as error:
                if not self._stopping.is_set():
                    self.problem = str(error)
                    logger.exception("the index is damaged, nothing is answered from it any more")
                return
            _check_vectors(self._connection, self._folder, self._stopping, _PAUSE_S)
        except (IndexFolderError, sqlite3.Error):
            if not self._stopping.is_set():
                logger.exception("the index is damaged")
        else:
            if not self._stopping.is_set():
                logger.info("index checked", extra={"path": str(self._folder)})


def _connect(folder: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(folder / STORE_FILE, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _check_structure(connection: sqlite3.Connection, folder: Path) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        verdict = " ".join(verdict.split())
        raise IndexFolderError(f"{folder / STORE_FILE} is corrupt ({verdict}): restore it or build the index anew")


def _check_vectors(connection: sqlite3.Connection, folder: Path, stopping: threading.Event, pause_s: float) -> None:
    encoder = connection.execute("SELECT dimension FROM encoder").fetchone()
    first = 0
    while encoder is not None and not stopping.wait(pause_s):
        # Part by part, since a long read keeps the write-ahead log from being emptied.
        part = next(vectors_from(connection, folder / STORE_FILE, first, encoder[0]), None)
        if part is None:
            break
        first = part[0][-1] + 1
    if pause_s == 0:
        (records,), (vectors,) = (
            connection.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("records", "vectors")
        )
        if records != vectors:
            raise IndexFolderError(f"{folder / STORE_FILE} is corrupt: {records} records but {vectors} vectors")
