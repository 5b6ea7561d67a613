"""Bounds what requests may hold in memory, before they are parsed, which takes several times their size."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

from resrank.core.errors import QueueFullError

MAX_HELD_BYTES = 128 * 1024 * 1024
"""Requests that are parsed and worked on at the same time, as they came in. Two of the largest; usual ones have some
kilobytes."""

_TRIM_BYTES = 8 * 1024 * 1024
"""From this size on memory is given back to the system: glibc would keep it for the next one."""

_TRIM_AFTER_S = 0.5


class UploadMemory:
    """Counts the bytes of requests under way. Used by the event loop's thread alone."""

    def __init__(self, limit: int = MAX_HELD_BYTES) -> None:
        self._limit = limit
        self._held = 0
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        self._due: asyncio.TimerHandle | None = None

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Holds a request's bytes while it is worked on.

        Raises:
            QueueFullError: Those under way leave no room for it.
        """
        if self._held and self._held + size > self._limit:
            raise QueueFullError(
                f"requests of {self._held} bytes are under way, and {self._limit} may be: send less at a time"
            )
        self._held += size
        try:
            yield
        finally:
            self._held -= size

    def give_back(self, size: int) -> None:
        """Called when a request of that size is refused or done."""
        if size < _TRIM_BYTES:
            return
        loop = asyncio.get_running_loop()
        # A refusal's traceback holds the message, in a cycle. Not only every half second: callers that come again at
        # once would have a dozen of them in memory by then.
        loop.call_soon(gc.collect)
        if self._due is None:
            self._due = loop.call_later(_TRIM_AFTER_S, self._give_back)

    def _give_back(self) -> None:
        self._due = None
        gc.collect()
        if self._trim is not None:
            self._trim(0)
