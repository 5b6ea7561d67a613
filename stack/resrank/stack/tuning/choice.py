"""Which of several ways to run an engine is taken: the quickest, where it is surely quicker than the default."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

LEAST_GAIN = 1.05
"""How much quicker than the default a setting must be. Less is within what a busy machine adds by chance, and not worth
another setting than the one that everybody else runs."""

MOST_DELAY = 1.2
"""How much longer a lone request may take than with the default. Engines with fewer threads each get more done together
and answer one caller later; most of the time a search service has one caller."""

ROUNDS = 4


@dataclass(frozen=True)
class Setting:
    """One way to run an engine.

    Attributes:
        engines: Side by side in the model's process.
        threads: Threads in each.
        rows: Rows in one call.
    """

    engines: int
    threads: int
    rows: int


@dataclass(frozen=True)
class Sample:
    """What one measurement of a setting gave.

    Attributes:
        rows_per_s: Throughput of all engines together.
        lone_ms: Milliseconds of one row while nothing else runs.
    """

    rows_per_s: float
    lone_ms: float


@dataclass(frozen=True)
class Choice:
    """What was measured and taken.

    Attributes:
        chosen: The setting that is taken.
        default: The one that it had to beat.
        rows_per_s: Of the chosen one: the median of all its measurements.
        samples: The first measurement of each setting, in order; what the time did not suffice for is missing.
        finalist: The best other setting; None where none was worth a final.
        gains: Its throughput against the default's in each round of the final.
    """

    chosen: Setting
    default: Setting
    rows_per_s: float
    samples: dict[Setting, Sample]
    finalist: Setting | None = None
    gains: tuple[float, ...] = ()


Measure = Callable[[Setting], Sample]
"""Measures a setting for a second or a few."""


def choose(
    default: Setting,
    others: Sequence[Setting],
    measure: Measure,
    *,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Choice:
    """Measures the settings once, then the best against the default in turn, and takes it only if it is surely better.

    Args:
        default: What the repository does by itself.
        others: What else may be taken, the most promising first.
        measure: Measures one.
        budget_s: No setting is measured for the first time after half of it, and no round of the final begins after it.
        clock: Seconds.

    Returns:
        The default where nothing else is at least LEAST_GAIN quicker, by the median of the rounds, without losing one
        of them, and within MOST_DELAY.
    """
    begin = clock()
    samples = {default: measure(default)}
    for setting in others:
        if clock() - begin > budget_s / 2:
            break
        samples[setting] = measure(setting)
    first = samples[default]
    eligible = [
        setting
        for setting, sample in samples.items()
        if setting != default and sample.lone_ms <= MOST_DELAY * first.lone_ms and sample.rows_per_s > first.rows_per_s
    ]
    if not eligible:
        return Choice(default, default, first.rows_per_s, samples)
    best = max(eligible, key=lambda setting: samples[setting].rows_per_s)
    speeds: dict[Setting, list[float]] = {default: [], best: []}
    for number in range(ROUNDS):
        if number and clock() - begin > budget_s:
            break
        for setting in (default, best) if number % 2 else (best, default):
            speeds[setting].append(measure(setting).rows_per_s)
    gains = tuple(ours / theirs for ours, theirs in zip(speeds[best], speeds[default], strict=True))
    better = len(gains) == ROUNDS and median(gains) >= LEAST_GAIN and min(gains) > 1.0
    chosen = best if better else default
    return Choice(chosen, default, median(speeds[chosen]), samples, best, gains)
