"""Cosines and BM25 on one scale: how a search joins what both ways of looking found, and how a reranked order keeps it.

    joint_i = A(c_i) + w * b_i / B          A(c) = slope * (c - center) + offset

c_i is a cosine, or the reranker's score, which is on that scale already and takes no A; b_i is BM25, and B the best
BM25 of any passage for the query.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError, Place
from resrank.core.names import Parameter

Float32 = NDArray[np.float32]

DEFAULT_LEXICAL_WEIGHT = 0.3
"""w where neither caller nor checkpoint says another; measured with e5-small as it is on four
collections, where .2 to .4 differ little. The default checkpoint says .2."""

MAX_LEXICAL_WEIGHT = 10.0
"""Cosines differ by 2 at most: from here on words alone decide."""

_Numbers = TypeVar("_Numbers")


class Fusion(StrEnum):
    """How candidates of both lists are joined."""

    WEIGHTED = "weighted"  # by the joint score
    RRF = "rrf"  # by reciprocal rank fusion


@dataclass(frozen=True)
class CosineMap:
    """A(c) = slope * (c - center) + offset: one scale for cosines, wherever an encoder's lie.

    Slots, scores, the lexical weight and training's margin work on A(c); an index and the API report c itself.

    Attributes:
        slope: Above 0, so that no order changes.
        center: The cosine that becomes ``offset``: of random passages, say.
        offset: What it becomes.

    Raises:
        InvalidInputError: A number is not finite or out of its range.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # where it is a field of a checkpoint

    slope: float
    center: float
    offset: float

    def __post_init__(self) -> None:
        if not 0.0 < self.slope <= 1e3:
            raise InvalidInputError("cosine_map.slope", "out of range", limit="above 0, at most 1000", value=self.slope)
        if not -1.0 <= self.center <= 1.0:
            raise InvalidInputError("cosine_map.center", "out of range", limit="-1 to 1", value=self.center)
        if not -1e3 <= self.offset <= 1e3:
            raise InvalidInputError("cosine_map.offset", "out of range", limit="-1000 to 1000", value=self.offset)

    def to_json(self) -> str:
        """As a model's config tells it."""
        return json.dumps(asdict(self))

    def apply(self, cosines: _Numbers) -> _Numbers:
        """A of every element, monotonic also where it rounds.

        Args:
            cosines: A number, or an array or tensor of floats in any shape.

        Returns:
            The same kind, shape and type.
        """
        return cast("_Numbers", self.slope * (cast("Any", cosines) - self.center) + self.offset)


IDENTITY = CosineMap(1.0, 0.0, 0.0)


def read_cosine_map(parameters: Mapping[str, str]) -> CosineMap:
    """The map that a model's config tells; the identity where it tells none."""
    told = parameters.get(Parameter.COSINE_MAP)
    return IDENTITY if told is None else CosineMap(**json.loads(told))


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
        values = np.asarray(scores)
    except (TypeError, ValueError):
        raise InvalidInputError("lexical_scores", "must be numbers") from None
    if values.dtype.kind not in "iuf":  # whole numbers of more than 64 bits are objects to NumPy
        raise InvalidInputError("lexical_scores", f"must be numbers of at most 64 bits, not {values.dtype}")
    values = values.astype(np.float64)
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
        raise InvalidInputError(Place("lexical_scores", (index,)), what, limit=0, value=values[index])
    return values.astype(np.float32)
