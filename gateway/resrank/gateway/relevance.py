"""Which map makes relevance of an answer's scores, and relevance as a logit."""

from __future__ import annotations

import math

from resrank.core.calibration import UNCALIBRATED, Calibration, Relevance

_LEAST = 1e-6
"""Relevance below which, and above 1 minus which, logits are not told apart: they end at 13.8 either way."""


def relevance_of(calibration: Calibration | None, lexical_weight: float | None, *, words: bool) -> Relevance:
    """The map of an answer's scores.

    Args:
        calibration: What was fitted for the checkpoint.
        lexical_weight: w, where the request says one; else it is the checkpoint's, for which the maps were fitted.
        words: Whether words have a share in the scores.
    """
    if calibration is None:
        return UNCALIBRATED
    if not words:
        return calibration.for_weight(None)
    return calibration.for_weight(calibration.lexical_weight if lexical_weight is None else lexical_weight)


def logit(relevance: float) -> float:
    """The logit of a relevance, whose sigmoid gives it back.

    Args:
        relevance: 0 to 1.
    """
    bounded = min(max(relevance, _LEAST), 1.0 - _LEAST)
    return math.log(bounded / (1.0 - bounded))
