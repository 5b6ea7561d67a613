"""One budget of time for a call, whatever number of steps and retries it takes."""

from __future__ import annotations

import time

from resrank.core.errors import DeadlineExceededError

_LONGEST_S = 365 * 24 * 3600.0
"""A year. gRPC counts nanoseconds from 1970 in 64 bits: what ends after 2262, some 7e9 s from now, has ended for it."""


class Deadline:
    """A point in time that every step of a call works towards.

    Attributes:
        timeout_s: The whole budget in seconds, for messages.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._end = time.monotonic() + min(timeout_s, _LONGEST_S)

    def remaining_s(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - time.monotonic())

    def require(self, what: str) -> float:
        """Seconds left for a step that is about to start.

        Args:
            what: The step, for the message.

        Raises:
            DeadlineExceededError: Nothing is left.
        """
        left = self.remaining_s()
        if left <= 0.0:
            raise DeadlineExceededError(f"timeout_s of {self.timeout_s:g} s passed before {what} could be asked")
        return left
