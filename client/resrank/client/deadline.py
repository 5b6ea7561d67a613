"""One budget of time for a call, whatever number of steps and retries it takes."""

from __future__ import annotations

import time

from resrank.core.errors import DeadlineExceededError
from resrank.core.fail_open import Reserve

_LONGEST_S = 365 * 24 * 3600.0
"""A year. gRPC counts nanoseconds from 1970 in 64 bits: what ends after 2262, some 7e9 s from now, has ended for it."""


class Deadline:
    """A point in time that every step of a call works towards.

    Attributes:
        timeout_s: The whole budget in seconds.
        said: The budget as messages name it.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.said = f"timeout_s of {round(timeout_s, 3):g} s"
        self._end = time.monotonic() + min(timeout_s, _LONGEST_S)

    def leaving(self, reserve: Reserve) -> Deadline:
        """The earlier point in time by which a step must end that can be done without.

        Args:
            reserve: What must be left for what then follows.
        """
        kept_s = reserve.seconds(self.timeout_s)
        if kept_s == 0.0:
            return self
        earlier = Deadline(self.timeout_s - kept_s)
        earlier.said = f"{earlier.timeout_s:g} s of {self.said}"
        earlier._end = self._end - kept_s
        return earlier

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
            raise DeadlineExceededError(f"{self.said} passed before {what} could be asked")
        return left
