"""Tells of refused requests without a line for each: who is refused a thousand times a second fills no disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

LINES = 20
WINDOW_S = 10.0
_REASON = 500


class RefusalLog:
    """At most :data:`LINES` lines in :data:`WINDOW_S` seconds, then how many there were besides.

    Args:
        logger: Where they go.
        clock: Seconds.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._began = clock()
        self._lines = 0
        self._left_out = 0

    def refused(self, method: str, status: str, reason: str) -> None:
        """Tells of one."""
        now = self._clock()
        if now - self._began >= WINDOW_S:
            if self._left_out:
                self._logger.info(
                    "more requests refused", extra={"requests": self._left_out, "seconds": round(now - self._began)}
                )
            self._began, self._lines, self._left_out = now, 0, 0
        if self._lines == LINES:
            self._left_out += 1
            return
        self._lines += 1
        self._logger.info("request refused", extra={"method": method, "status": status, "reason": reason[:_REASON]})
