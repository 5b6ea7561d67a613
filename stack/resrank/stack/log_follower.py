"""Reads a log file as it grows and hands on each complete line."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import BinaryIO

_POLL_S = 0.1
_CHUNK_BYTES = 64 * 1024
_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
"""FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE of fallocate(2)."""


class LogFollower:
    """A thread that follows an open log from its present end.

    Args:
        log: The file; read by position, so whoever writes to it is not disturbed.
        on_line: Called in the follower's thread with each line, without its newline.
        limit: Bytes above which the disk gets all but the last 64 KiB back; None for a file that is somebody's.
    """

    def __init__(self, log: BinaryIO, on_line: Callable[[str], None], limit: int | None = None) -> None:
        self._log = log
        self._limit = limit
        self._on_line = on_line
        self._offset = os.fstat(log.fileno()).st_size
        self._given_back = 0
        self._rest = b""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="resrank-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hands on what is still unread, then ends the thread. The log may be closed afterwards."""
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(_POLL_S):
            self._read()
        self._read()
        if self._rest:
            self._on_line(self._rest.decode("utf-8", "replace"))

    def _read(self) -> None:
        descriptor = self._log.fileno()
        size = os.fstat(descriptor).st_size
        if size < self._offset:  # rotated by somebody
            self._offset = 0
        while chunk := os.pread(descriptor, _CHUNK_BYTES, self._offset):
            self._offset += len(chunk)
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                self._on_line(line.decode("utf-8", "replace"))
        if self._limit is not None and self._offset - self._given_back > self._limit:
            self._given_back = self._offset - _CHUNK_BYTES
            _give_back(descriptor, self._given_back)


def _give_back(descriptor: int, end: int) -> None:
    """Frees what a file has before a place. Its length stays, so that nobody who writes to it meanwhile loses a line.

    A file system that cannot (those of temporary files on Linux can) keeps it all.
    """
    ctypes.CDLL(None).fallocate(descriptor, _KEEP_SIZE_PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(end))
