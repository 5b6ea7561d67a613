"""Times at which calls arrive in the open loop: a Poisson process whose rate may change."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from resrank.loadtest.profile import Profile


def poisson_arrivals(profile: Profile, rng: np.random.Generator, *, share: float = 1.0) -> Iterator[float]:
    """Draws arrivals.

    By time rescaling: arrivals of a process of rate 1 in the area below the profile are arrivals of the profile's rate
    in time. Independent streams whose shares add up to 1 are together the whole process.

    Args:
        profile: Calls a second over time.
        rng: Of this stream alone.
        share: The part of the rate that this stream makes.

    Yields:
        Seconds from the start, ascending.
    """
    area = 0.0
    while True:
        area += rng.standard_exponential() / share
        time = profile.when(area)
        if time is None:
            return
        yield time


def stream_rng(seed: int, index: int) -> np.random.Generator:
    """The random numbers of one stream: reproducible, and independent of every other stream's.

    Args:
        seed: The scenario's.
        index: Of the stream, from 0.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
