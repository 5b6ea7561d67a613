"""Files that appear whole or not at all, however large."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from resrank.core.durability import flush
from resrank.core.errors import ExportError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class PartialFile:
    """What :func:`partial_file` writes to.

    Attributes:
        bytes: How many came so far.
    """

    def __init__(self, file: BinaryIO, aside: Path, path: Path) -> None:
        self.bytes = 0
        self._file = file
        self._aside = aside
        self._path = path
        self._digest = hashlib.sha256()

    def write(self, content: bytes) -> None:
        """Appends.

        Raises:
            OSError: The disk is full or fails.
        """
        self.bytes += len(content)
        self._file.write(content)
        self._digest.update(content)

    def finish(self) -> str:
        """Puts the file in its place.

        Returns:
            Its hex SHA-256.

        Raises:
            OSError: The disk is full or fails.
        """
        self._file.flush()
        flush(self._aside)
        self._aside.replace(self._path)
        return self._digest.hexdigest()


@contextmanager
def partial_file(path: Path) -> Iterator[PartialFile]:
    """Writes a file under another name beside its place; what is not finished at the end is removed.

    Args:
        path: Its place; the folder is made when missing.

    Yields:
        The file.

    Raises:
        ExportError: The disk is full or fails.
    """
    aside = path.with_name(f".{path.name}.partial")
    needed = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            partial = PartialFile(file, aside, path)
            try:
                yield partial
            finally:
                needed = partial.bytes
                aside.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in _FULL:
            raise ExportError(_no_space(path, needed)) from error
        raise ExportError(f"{path}: cannot be written ({error.strerror}); choose another place with --out") from error


def refuse_full_disk(path: Path, needed: int) -> None:
    """Looks for space before a file is made.

    Args:
        path: The file.
        needed: Its size in bytes at least.

    Raises:
        ExportError: There is less.
    """
    if _free_bytes(path) < needed:
        raise ExportError(_no_space(path, needed))


def _no_space(path: Path, needed: int) -> str:
    free = _free_bytes(path)
    return (
        f"{path}: no space: it needs at least {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free; make room, or "
        "choose another place with --out"
    )


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.is_dir())).free
