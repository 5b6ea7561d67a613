"""The texts of an index, read beside whoever serves it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from resrank.core.errors import IndexFolderError
from resrank.retrieval.local.schema import APPLICATION_ID, STORE_FILE


def stored_texts(folder: Path) -> Iterator[tuple[str, str]]:
    """Reads title and text of every record, as they are at one moment, whoever owns the folder meanwhile.

    Args:
        folder: An index folder.

    Raises:
        IndexFolderError: It is no index, or cannot be read.
    """
    path = folder / STORE_FILE
    try:
        # Not mode=ro: a reader of a write-ahead log takes part in its shared memory, and may have to make it.
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None)) as reader:
            reader.execute("PRAGMA query_only = ON")
            (application_id,) = reader.execute("PRAGMA application_id").fetchone()
            if application_id != APPLICATION_ID:
                raise IndexFolderError(f"{path} is another program's database: name another index folder")
            reader.execute("BEGIN")  # without it the writer's next commit would end what is read
            yield from reader.execute("SELECT title, text FROM records ORDER BY key")
    except sqlite3.Error as error:
        raise IndexFolderError(f"{path} cannot be read ({error})") from error
