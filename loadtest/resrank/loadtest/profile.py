"""How much load there is at which time: phases joined to one line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Level(Protocol):
    """A phase as far as its load is concerned."""

    @property
    def level(self) -> float:
        """Calls a second, or users."""

    @property
    def duration_s(self) -> float:
        """Its length."""

    @property
    def ramp_s(self) -> float:
        """How long it takes at its start to get from the level before to its own."""


@dataclass(frozen=True)
class _Segment:
    start: float
    end: float
    first: float
    last: float

    @property
    def slope(self) -> float:
        return (self.last - self.first) / (self.end - self.start)

    @property
    def area(self) -> float:
        return (self.first + self.last) / 2 * (self.end - self.start)


class Profile:
    """The load as a function of time, in straight lines, from 0 s on.

    Args:
        phases: In their order. The first one's ramp starts at 0.
    """

    def __init__(self, phases: Sequence[Level]) -> None:
        self._segments: list[_Segment] = []
        time, level = 0.0, 0.0
        for phase in phases:
            end = time + phase.duration_s
            ramped = min(time + phase.ramp_s, end)
            if ramped > time:
                self._segments.append(_Segment(time, ramped, level, phase.level))
            if end > ramped:
                self._segments.append(_Segment(ramped, end, phase.level, phase.level))
            time, level = end, phase.level

    @property
    def duration_s(self) -> float:
        """Its length."""
        return self._segments[-1].end

    @property
    def total(self) -> float:
        """The area below it: how many calls are expected."""
        return sum(segment.area for segment in self._segments)

    def at(self, time: float) -> float:
        """The level at a time; 0 before the start and from the end on."""
        for segment in self._segments:
            if segment.start <= time < segment.end:
                return segment.first + segment.slope * (time - segment.start)
        return 0.0

    def when(self, area: float) -> float | None:
        """The time at which the area below the line reaches a value; None when it never does.

        Args:
            area: Above 0.
        """
        for segment in self._segments:
            if area <= segment.area:
                # The root of first·t + slope·t²/2 = area, in the form that loses nothing for a slope near 0.
                root = math.sqrt(max(0.0, segment.first**2 + 2 * segment.slope * area))
                return min(segment.end, segment.start + 2 * area / (segment.first + root))
            area -= segment.area
        return None
