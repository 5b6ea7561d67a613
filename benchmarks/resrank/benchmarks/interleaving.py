"""Timing of several ways to do one thing, call by call in turn, so that whatever else the machine does hits all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

"""Called with one line per step."""


def interleave(
    sides: Mapping[str, Callable[[int], object]], *, runs: int, warm_up: int, pause_s: float = 0.0
) -> dict[str, list[float]]:
    """Calls all sides in turn, another one first in each round.

    Args:
        sides: Label to what is timed; called with the number of the round, warm-up included.
        runs: Timed rounds.
        warm_up: Rounds before them that are not timed.
        pause_s: Rest before each call, for sides whose threads keep a core busy for a while after their work is done.
            Others should go without: a rest cools caches, which hurts the quicker side more.

    Returns:
        Label to milliseconds of each timed call.
    """
    labels = list(sides)
    spent: dict[str, list[float]] = {label: [] for label in labels}
    for number in range(warm_up + runs):
        first = number % len(labels)
        for label in labels[first:] + labels[:first]:
            if pause_s:
                time.sleep(pause_s)
            started = time.perf_counter()
            sides[label](number)
            elapsed = time.perf_counter() - started
            if number >= warm_up:
                spent[label].append(1e3 * elapsed)
    return spent
