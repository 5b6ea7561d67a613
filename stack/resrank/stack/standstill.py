"""Notices a process that was stopped (SIGSTOP): alive for its parent, and answering nobody."""

from __future__ import annotations

import time

import psutil

STOPPED_S = 2.0
"""How long a process may stand still before that is a failure."""


class Standstill:
    """One process, looked at again and again.

    Args:
        process: The process.
        patience_s: How long it may stand still.
    """

    def __init__(self, process: psutil.Process, patience_s: float = STOPPED_S) -> None:
        self._process = process
        self._patience_s = patience_s
        self._since: float | None = None

    def lasts(self) -> bool:
        """Whether it was found stopped at every look for as long as one has patience.

        Raises:
            psutil.NoSuchProcess: It is gone.
        """
        if self._process.status() != psutil.STATUS_STOPPED:
            self._since = None
            return False
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return now - self._since >= self._patience_s
