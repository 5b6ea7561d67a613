"""Every call of a run, in 18 bytes each: figures come from all of them, never from rounded buckets."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from resrank.core.outcomes import Outcome
from resrank.loadtest.kinds import KINDS, OUTCOMES, CallKind
from resrank.loadtest.scenario import MAX_CALLS

CALL = np.dtype(
    [
        ("start", "<f8"),  # seconds from the run's start at which the call should have started
        ("latency", "<f4"),  # seconds from there to its end
        ("late", "<f4"),  # seconds from there until it was sent
        ("kind", "u1"),  # place in KINDS
        ("outcome", "u1"),  # place in OUTCOMES
    ]
)
Calls = NDArray[np.void]

_ROW = struct.Struct("<dffBB")
_KIND = {kind: place for place, kind in enumerate(KINDS)}
_OUTCOME = {outcome: place for place, outcome in enumerate(OUTCOMES)}


@dataclass
class Recording:
    """What one process saw, or the parts of several put together.

    Attributes:
        messages: The first message of each outcome that is not ok.
        held_back: Calls that had to wait since as many as allowed were under way.
        unsent: Calls whose time was over before they could be sent; they count as ``deadline``.
        dropped: Calls beyond what a run keeps.
    """

    messages: dict[str, str] = field(default_factory=dict)
    held_back: int = 0
    unsent: int = 0
    dropped: int = 0
    _rows: bytearray = field(default_factory=bytearray)

    def add(
        self, kind: CallKind, outcome: Outcome, *, start: float, sent: float, end: float, message: str = ""
    ) -> None:
        """Records a call.

        Args:
            kind: What was called.
            outcome: How it ended.
            start: When it should have started, in seconds from the run's start.
            sent: When it was sent, likewise.
            end: When it ended, likewise.
            message: Of the error, if there was one.
        """
        if message:
            self.messages.setdefault(outcome.value, message)
        if len(self._rows) >= MAX_CALLS * _ROW.size:
            self.dropped += 1
            return
        self._rows += _ROW.pack(start, end - start, sent - start, _KIND[kind], _OUTCOME[outcome])

    def calls(self) -> Calls:
        """All calls by the time at which they should have started, as an array of ``CALL``."""
        return self.latest(MAX_CALLS)

    def latest(self, count: int) -> Calls:
        """The last calls that ended, by start; cheap however many there are.

        Args:
            count: How many at most.
        """
        calls = np.frombuffer(bytes(self._rows[-count * _ROW.size :]), dtype=CALL)
        return calls[np.argsort(calls["start"], kind="stable")]

    def take(self) -> dict[str, object]:
        """What was recorded since the last time, for another process to :meth:`merge`."""
        part: dict[str, object] = {
            "rows": bytes(self._rows),
            "messages": dict(self.messages),
            "held_back": self.held_back,
            "unsent": self.unsent,
            "dropped": self.dropped,
        }
        self._rows.clear()
        self.held_back = self.unsent = self.dropped = 0
        return part

    def merge(self, part: dict[str, object]) -> None:
        """Adds what another process took."""
        rows, messages = part["rows"], part["messages"]
        assert isinstance(rows, bytes)
        assert isinstance(messages, dict)
        room = MAX_CALLS * _ROW.size - len(self._rows)
        self._rows += rows[: max(0, room)]
        self.dropped += max(0, len(rows) - room) // _ROW.size
        for outcome, message in messages.items():
            self.messages.setdefault(outcome, message)
        for name in ("held_back", "unsent", "dropped"):
            more = part[name]
            assert isinstance(more, int)
            setattr(self, name, getattr(self, name) + more)
