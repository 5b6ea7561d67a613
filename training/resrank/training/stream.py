"""An endless stream of training lists in which a position is one number, so that a run resumes exactly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from resrank.training.lists import CandidateList
from resrank.training.sampling import CandidateSampler
from resrank.training.sources import Source

ROUND = 1024
"""Positions in which each source has exactly its share of lists, in random order: weights hold to 0.1 %, and within a
round no source is missing for long."""

_ROUND_SEED, _EPOCH_SEED, _SAMPLE_SEED = range(3)


class ListStream:
    """Mixes sources by weight; each source goes through all its lists in a new order before any comes again.

    There is no state: source, list and the sampler's draws all follow from seed and position.
    """

    def __init__(self, sources: Sequence[Source], sampler: CandidateSampler, seed: int) -> None:
        """Takes the sources.

        Args:
            sources: At least one, each with at least one list.
            sampler: Draws the version of a list that is seen.
            seed: Of everything random.
        """
        self._sources = sources
        self._sampler = sampler
        self._seed = seed
        self._quotas = _quotas([source.weight for source in sources])
        self._round = lru_cache(maxsize=2)(self._make_round)
        self._epoch = lru_cache(maxsize=2 * len(sources))(self._make_epoch)

    def at(self, position: int) -> CandidateList:
        """The list at a position, from 0."""
        number, offset = divmod(position, ROUND)
        order, earlier = self._round(number)
        source = int(order[offset])
        epoch, index = divmod(
            number * int(self._quotas[source]) + int(earlier[offset]), len(self._sources[source].lists)
        )
        candidates = self._sources[source].lists[self._epoch(source, epoch)[index]]
        return self._sampler.sample(candidates, np.random.default_rng((self._seed, _SAMPLE_SEED, position)))

    def _make_round(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which source stands at each position of a round, and how often it stood earlier in it; int64 [ROUND]."""
        rng = np.random.default_rng((self._seed, _ROUND_SEED, number))
        order = rng.permutation(np.repeat(np.arange(len(self._quotas)), self._quotas))
        earlier = np.empty(ROUND, np.int64)
        for source, quota in enumerate(self._quotas):
            earlier[order == source] = np.arange(quota)
        return order, earlier

    def _make_epoch(self, source: int, epoch: int) -> NDArray[np.int64]:
        """The order in which a source's lists come in one of its epochs, int64 [lists]."""
        rng = np.random.default_rng((self._seed, _EPOCH_SEED, source, epoch))
        order: NDArray[np.int64] = rng.permutation(len(self._sources[source].lists))
        return order


def _quotas(weights: Sequence[float]) -> NDArray[np.int64]:
    """Lists per round by source, int64 [sources]: shares by largest remainder, and at least one each."""
    shares = np.array(weights) / sum(weights) * (ROUND - len(weights))
    quotas: NDArray[np.int64] = np.floor(shares).astype(np.int64) + 1
    largest = np.argsort(quotas - shares, kind="stable")
    quotas[largest[: ROUND - quotas.sum()]] += 1
    return quotas
