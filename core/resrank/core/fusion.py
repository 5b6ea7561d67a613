"""Cosines and BM25 on one scale: how a search joins what both ways of looking found, and how a reranked order keeps it.

    joint_i = A(c_i) + w * b_i / B          A(c) = slope * (c - center) + offset

c_i is a cosine, or the reranker's score, which is on that scale already and takes no A; b_i is BM25, and B the best
BM25 of any passage for the query.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError
from resrank.core.names import Parameter

Float32 = NDArray[np.float32]

DEFAULT_LEXICAL_WEIGHT = 0.3
"""w where neither caller nor checkpoint says another: it gained on each of the four collections it was measured on."""

MAX_LEXICAL_WEIGHT = 10.0
"""Cosines differ by 2 at most: from here on words alone decide."""

_MAX_MAP = 1000.0  # an affine map beyond it is a mistake, and would leave FP32's precision to no difference of cosines


class Fusion(StrEnum):
    """How candidates of both lists are joined."""

    WEIGHTED = "weighted"  # by the joint score
    RRF = "rrf"  # by reciprocal rank fusion


@dataclass(frozen=True, slots=True)
class CosineMap:
    """The affine map A from an encoder's cosines to the scale of scores; the identity by default.

    Attributes:
        slope: Above 0.
        center: The cosine that is mapped to ``offset``.
        offset: What it is mapped to.

    Raises:
        InvalidInputError: A number is not finite or out of its range.
    """

    slope: float = 1.0
    center: float = 0.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.slope <= _MAX_MAP:
            raise InvalidInputError(
                "cosine_map.slope", "out of range", limit=f"above 0, at most {_MAX_MAP:g}", value=self.slope
            )
        for name in ("center", "offset"):
            value = getattr(self, name)
            if not -_MAX_MAP <= value <= _MAX_MAP:
                raise InvalidInputError(
                    f"cosine_map.{name}", "out of range", limit=f"{-_MAX_MAP:g} to {_MAX_MAP:g}", value=value
                )

    def __call__(self, cosines: Float32) -> Float32:
        """Maps FP32 cosines, in FP32: monotonic also where it rounds."""
        mapped: Float32 = np.float32(self.slope) * (cosines - np.float32(self.center)) + np.float32(self.offset)
        return mapped


IDENTITY = CosineMap()


def read_cosine_map(parameters: Mapping[str, str]) -> CosineMap:
    """The map that a model's config tells; the identity where it tells none."""
    return CosineMap(
        slope=float(parameters.get(Parameter.COSINE_SLOPE, IDENTITY.slope)),
        center=float(parameters.get(Parameter.COSINE_CENTER, IDENTITY.center)),
        offset=float(parameters.get(Parameter.COSINE_OFFSET, IDENTITY.offset)),
    )


def read_lexical_weight(parameters: Mapping[str, str]) -> float:
    """The w that a model's config tells, else ``DEFAULT_LEXICAL_WEIGHT``."""
    return check_lexical_weight(float(parameters.get(Parameter.LEXICAL_WEIGHT, DEFAULT_LEXICAL_WEIGHT)))


def joint_scores(scores: Float32, lexical: Float32, best: float, weight: float) -> Float32:
    """Adds the words' share to scores.

    Args:
        scores: FP32 [n], mapped cosines or the reranker's scores.
        lexical: FP32 [n], BM25, 0 where no word stands.
        best: The best BM25 of any passage for the query; 0 where no passage has a word of it.
        weight: w.

    Returns:
        FP32 [n].
    """
    if best <= 0.0 or weight == 0.0:
        return scores
    joint: Float32 = scores + np.float32(weight) * (lexical.astype(np.float32, copy=False) / np.float32(best))
    return joint


def check_lexical_weight(weight: float) -> float:
    """Returns a weight that a search can have.

    Raises:
        InvalidInputError: No number in 0 to ``MAX_LEXICAL_WEIGHT``.
    """
    if isinstance(weight, bool) or not isinstance(weight, int | float | np.integer | np.floating):
        raise InvalidInputError("lexical_weight", f"must be a number, not {type(weight).__name__}")
    if not 0.0 <= weight <= MAX_LEXICAL_WEIGHT:
        raise InvalidInputError("lexical_weight", "out of range", limit=f"0 to {MAX_LEXICAL_WEIGHT:g}", value=weight)
    return float(weight)


def check_lexical_scores(scores: Sequence[float] | NDArray[Any], count: int) -> Float32:
    """Returns BM25 scores of a list of candidates as FP32 [count].

    Raises:
        InvalidInputError: Not as many as candidates, or the first one that is no finite number from 0 on.
    """
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidInputError("lexical_scores", "must be numbers") from None
    if values.ndim != 1 or len(values) != count:
        raise InvalidInputError(
            "lexical_scores", "not as many as candidates", limit=count, value="x".join(map(str, values.shape)) or 1
        )
    wrong = np.flatnonzero(~((values >= 0.0) & (values <= np.finfo(np.float32).max)))
    if wrong.size:
        index = int(wrong[0])
        what = "must be a number from 0 on"
        if not math.isfinite(values[index]):
            what = "must be finite"
        raise InvalidInputError(f"lexical_scores[{index}]", what, limit=0, value=values[index])
    return values.astype(np.float32)
