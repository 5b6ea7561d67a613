"""What a reranker's score means to a caller: a number from 0 to 1, whatever the scale that scores are on."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_LEAST = 1e-6
"""Probability below which, and above 1 minus which, logits are not told apart: they end at 13.8 either way."""


class Relevance(Protocol):
    """Turns scores into relevance.

    Attributes:
        name: What it is, for callers.
    """

    name: str

    def of(self, scores: Float64) -> Float64:
        """Relevance of scores, 0 to 1; never smaller for a larger score.

        Args:
            scores: FP64 [n], the reranker's, with the words' share where there is one.
        """
        ...


class HalfShifted:
    """Where no calibration was fitted: (1 + s) / 2 within 0 to 1, which orders but is no probability."""

    name = "(1 + s) / 2"

    def of(self, scores: Float64) -> Float64:
        """See :meth:`Relevance.of`."""
        return np.clip((1.0 + scores) / 2.0, 0.0, 1.0)


def logit(relevance: float) -> float:
    """The logit of a relevance, whose sigmoid gives it back.

    Args:
        relevance: 0 to 1.
    """
    bounded = min(max(relevance, _LEAST), 1.0 - _LEAST)
    return float(np.log(bounded / (1.0 - bounded)))
