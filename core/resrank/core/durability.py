"""Files that survive a power cut: written is not yet on the disk."""

from __future__ import annotations

import os
import tempfile
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


def replace_file(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Writes a file whole or not at all: who reads meanwhile finds the old one or the new one.

    Args:
        path: The file; its folder exists.
        text: All of it.
        mode: Who may read it.

    Raises:
        OSError: The folder is missing or may not be written in, or the disk is full or fails.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    aside = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        aside.chmod(mode)  # mkstemp's 0600 would hide it from a server that runs as another user
        flush(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    flush(path.parent)


def private(path: str, flags: int) -> int:
    """An ``opener`` for :func:`open` by which a new file is its owner's alone."""
    return os.open(path, flags, 0o600)
