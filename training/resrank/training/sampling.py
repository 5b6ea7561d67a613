"""Lists as training sees them: of varied length and order, so that the model relies on neither."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from resrank.training.data_config import CandidatesConfig
from resrank.training.lists import CandidateList

Positions = NDArray[np.int64]
"""Positions in a list, from 0; int64 [·]."""


class CandidateSampler:
    """Truncates a list to a length drawn anew each time, and shuffles it with some probability."""

    def __init__(self, config: CandidatesConfig) -> None:
        """Takes the bounds.

        Args:
            config: Lengths and the probability of shuffling.
        """
        self._config = config

    def sample(self, candidates: CandidateList, rng: np.random.Generator) -> CandidateList:
        """Draws one version of a list.

        The length N is uniform in ``[min_passages, max_passages]`` (or the whole list, if that is shorter). What is
        kept is the beginning of the list, which is what retrieval hands over when asked for that many, or with
        ``spread`` a random part of the first ``spread`` × N; lengths whose beginning has no relevant passage, or no
        other, are not drawn. Where every length up to ``max_passages`` is such a one, a random part of the list is
        kept: it takes the ranks of relevant passages as they are, while moving one of them into the beginning would
        teach that the retriever's last is the best.

        Args:
            candidates: The list, best first.
            rng: Decides; the same state gives the same version.

        Returns:
            Passages of the list with their labels, at least one relevant and one that is not (or, where all are
            relevant, one of a lower grade).
        """
        spread, size = self._config.spread, len(candidates)
        longest = min(self._config.max_passages, size)
        shortest = min(self._config.min_passages, longest)
        better, worse = _two_sides(candidates)
        # The shortest length whose beginning has both.
        needed = math.ceil((max(int(better[0]), int(worse[0])) + 1) / spread)
        if needed <= longest:
            length = int(rng.integers(max(shortest, needed), longest + 1))
            window = min(size, int(spread * length + 1e-9))  # the sum, lest 1.1 × 10 be 10
        else:
            length, window = int(rng.integers(shortest, longest + 1)), size
        if window == length:
            kept = np.arange(length)
        else:
            kept = _random_part(window, length, better[better < window], worse[worse < window], rng)
        if rng.random() < self._config.shuffle:
            kept = rng.permutation(kept)
        return replace(
            candidates,
            passages=tuple(candidates.passages[index] for index in kept),
            labels=tuple(candidates.labels[index] for index in kept),
        )


def _two_sides(candidates: CandidateList) -> tuple[Positions, Positions]:
    """Positions, ascending, of the relevant passages and of those to rank below them; neither is empty."""
    relevant = np.array(candidates.relevant)
    if relevant.all():  # graded 1 and 2, say: the best are to stand above the others
        labels = np.array(candidates.labels)
        relevant = labels == labels.max()
    return np.flatnonzero(relevant), np.flatnonzero(~relevant)


def _random_part(size: int, length: int, better: Positions, worse: Positions, rng: np.random.Generator) -> Positions:
    """Positions, ascending, of a random passage of either side and of others drawn from the first ``size``."""
    sure = np.array([rng.choice(better), rng.choice(worse)])
    rest = np.setdiff1d(np.arange(size), sure)
    return np.sort(np.concatenate([sure, rng.choice(rest, length - 2, replace=False)]))
