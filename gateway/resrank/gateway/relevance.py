"""Relevance as a logit."""

from __future__ import annotations

import math

_LEAST = 1e-6
"""Relevance below which, and above 1 minus which, logits are not told apart: they end at 13.8 either way."""


def logit(relevance: float) -> float:
    """The logit of a relevance, whose sigmoid gives it back.

    Args:
        relevance: 0 to 1.
    """
    bounded = min(max(relevance, _LEAST), 1.0 - _LEAST)
    return math.log(bounded / (1.0 - bounded))
