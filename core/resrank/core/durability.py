"""Files that survive a power cut: written is not yet on the disk."""

from __future__ import annotations

import os
from pathlib import Path


def flush(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk.

    Raises:
        OSError: The disk is full or fails.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """Waits until a folder and everything below it is on the disk.

    Raises:
        OSError: The disk is full or fails.
    """
    for path in (*folder.rglob("*"), folder):
        flush(path)


def private(path: str, flags: int) -> int:
    """An ``opener`` for :func:`open` by which a new file is its owner's alone."""
    return os.open(path, flags, 0o600)
