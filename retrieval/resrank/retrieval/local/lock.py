"""One process owns an index folder, and its lock file says which."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from resrank.core.durability import private
from resrank.core.errors import IndexFolderError
from resrank.core.json_lines import parse_json

LOCK_FILE = "lock"

_ATTEMPTS = 5
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that owns an index folder.

    Attributes:
        pid: Its process id.
        address: Where its sidecar listens (``host:port``), None while it is still starting.
        transient: Whether that sidecar ends with the command that started it.
    """

    pid: int
    address: str | None
    transient: bool = False


class FolderLock:
    """Exclusive ownership of an index folder.

    The kernel holds the lock (flock), so it ends with the process however that dies; the file's content only says who.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    @classmethod
    def acquire(cls, folder: Path) -> Self:
        """Takes the folder.

        Args:
            folder: An existing index folder.

        Returns:
            The lock, to be released or left to end with the process.

        Raises:
            IndexFolderError: Another process owns the folder, or it is not writable.
        """
        path = folder / LOCK_FILE
        try:
            file = open(path, "a+", opener=private)  # noqa: SIM115 - the lock lives as long as it is open
        except OSError as error:
            raise IndexFolderError(f"index folder {folder} is not writable: {error.strerror}") from error
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Someone who only asks for the owner holds the lock for an instant, see read_owner.
                if attempt + 1 < _ATTEMPTS:
                    time.sleep(_PAUSE_S)
                continue
            lock = cls(file)
            try:
                lock.announce(None)
            except OSError as error:
                raise IndexFolderError(f"index folder {folder} cannot be written: {error.strerror}") from error
            return lock
        owner = _parse(file)
        file.close()
        who = "another process" if owner is None else f"process {owner.pid}"
        where = "" if owner is None or owner.address is None else f", which serves it at {owner.address}"
        raise IndexFolderError(f"index folder {folder} is owned by {who}{where}: stop it, or write through it")

    def announce(self, address: str | None, *, transient: bool = False) -> None:
        """Writes into the lock file who owns the folder.

        Args:
            address: Where the sidecar listens, None before it does.
            transient: Whether it ends with the command that started it.
        """
        self._file.seek(0)
        self._file.truncate()
        json.dump({"pid": os.getpid(), "address": address, "transient": transient}, self._file)
        self._file.flush()

    def release(self) -> None:
        """Gives the folder back."""
        self._file.seek(0)
        self._file.truncate()
        self._file.close()


def read_owner(folder: Path) -> Owner | None:
    """Tells which process owns an index folder.

    Args:
        folder: An index folder; it need not exist.

    Returns:
        The owner, or None when nobody holds the lock, whatever a dead process left in the file.

    Raises:
        IndexFolderError: It is no folder, or its lock file cannot be read.
    """
    path = folder / LOCK_FILE
    try:
        file = path.open("r")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IndexFolderError(f"{path} cannot be read ({error.strerror}): name an index folder of yours") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parse(file) or Owner(pid=0, address=None)
        return None


def _parse(file: IO[str]) -> Owner | None:
    file.seek(0)
    try:
        content = parse_json(file.read())
        return Owner(int(content["pid"]), content["address"], bool(content.get("transient", False)))
    except (ValueError, KeyError, TypeError):
        return None
