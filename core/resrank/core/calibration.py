"""What a score means: a relevance from 0 to 1, by a map that was fitted on judged lists.

A reranker's scores order passages; how large they are depends on the checkpoint. ``resrank calibrate`` fits maps to the
share of relevant passages among those with a score, so that a threshold means the same wherever it is used. No map
changes an order.

There are two, since there are two kinds of score: the reranker's alone, and with the words' share that a search adds
(:mod:`resrank.core.fusion`), which holds for one lexical weight.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError
from resrank.core.names import Parameter

Float64 = NDArray[np.float64]

MAX_STEPS = 200
"""Points of an isotonic map, which a model's config holds as text: more tell judgements apart that nobody can."""

_LARGEST = 1e4  # of a score, a slope or an intercept


class Relevance(Protocol):
    """A map of scores to relevance."""

    @property
    def name(self) -> str:
        """What it is, for callers."""
        ...

    def of(self, scores: NDArray[np.floating[Any]]) -> Float64:
        """Relevance of scores.

        Args:
            scores: Floats in any shape.

        Returns:
            FP64 in 0 to 1, of the same shape; never smaller for a larger score.
        """
        ...


@dataclass(frozen=True)
class Platt:
    """A sigmoid: 1 / (1 + exp(-(slope * s + intercept))).

    Attributes:
        slope: Above 0, so that no order changes.
        intercept: The logit of a score of 0.
        kind: Tells it from :class:`Isotonic` in JSON.

    Raises:
        InvalidInputError: A number is not finite or out of its range.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # where it is a field of a file
    name: ClassVar[str] = "platt"

    slope: float
    intercept: float
    kind: Literal["platt"] = "platt"

    def __post_init__(self) -> None:
        if not 0.0 < self.slope <= _LARGEST:
            raise InvalidInputError("slope", "out of range", limit=f"above 0, at most {_LARGEST:g}", value=self.slope)
        if not -_LARGEST <= self.intercept <= _LARGEST:
            raise InvalidInputError("intercept", "out of range", limit=f"±{_LARGEST:g}", value=self.intercept)

    def of(self, scores: NDArray[np.floating[Any]]) -> Float64:
        """See :meth:`Relevance.of`."""
        # By way of tanh, which overflows nowhere.
        relevance: Float64 = 0.5 * (1.0 + np.tanh(0.5 * (self.slope * scores.astype(np.float64) + self.intercept)))
        return relevance


@dataclass(frozen=True)
class Isotonic:
    """A staircase with slopes: straight lines between points, level beyond the first and the last.

    Attributes:
        scores: Where the points are, ascending, 2 to ``MAX_STEPS``.
        relevances: Their height, in 0 to 1, never falling.
        kind: Tells it from :class:`Platt` in JSON.

    Raises:
        InvalidInputError: The points are not such ones.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # where it is a field of a file
    name: ClassVar[str] = "isotonic"

    scores: tuple[float, ...]
    relevances: tuple[float, ...]
    kind: Literal["isotonic"] = "isotonic"

    def __post_init__(self) -> None:
        count = len(self.scores)
        if not 2 <= count <= MAX_STEPS:
            raise InvalidInputError("scores", "too few or too many points", limit=f"2 to {MAX_STEPS}", value=count)
        if len(self.relevances) != count:
            raise InvalidInputError("relevances", "not as many as scores", limit=count, value=len(self.relevances))
        for field, values, most in (("scores", self.scores, _LARGEST), ("relevances", self.relevances, 1.0)):
            least = -most if field == "scores" else 0.0
            if wrong := [value for value in values if not (math.isfinite(value) and least <= value <= most)]:
                raise InvalidInputError(field, "out of range", limit=f"{least:g} to {most:g}", value=wrong[0])
        if any(after <= before for before, after in pairwise(self.scores)):
            raise InvalidInputError("scores", "must ascend")
        if any(after < before for before, after in pairwise(self.relevances)):
            raise InvalidInputError("relevances", "must not fall")

    def of(self, scores: NDArray[np.floating[Any]]) -> Float64:
        """See :meth:`Relevance.of`."""
        relevance: Float64 = np.interp(scores.astype(np.float64), self.scores, self.relevances)
        return relevance


FittedMap = Platt | Isotonic


@dataclass(frozen=True)
class Sigmoid:
    """Where no calibration was fitted: 1 / (1 + exp(-s)), which orders but is no probability.

    Scores have no bounds (cosines are mapped, words have their share), so that a line from -1 to 1 would end in 1 for
    many of them.
    """

    name: ClassVar[str] = "1 / (1 + exp(-s))"

    def of(self, scores: NDArray[np.floating[Any]]) -> Float64:
        """See :meth:`Relevance.of`."""
        return Platt(slope=1.0, intercept=0.0).of(scores)


UNCALIBRATED = Sigmoid()


@dataclass(frozen=True)
class Calibration:
    """The maps that were fitted for a checkpoint.

    Attributes:
        reranker: Of the reranker's scores alone.
        with_words: Of these with the words' share.
        lexical_weight: w of that share; with another weight the second map says nothing.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # where it is a field of a file

    reranker: FittedMap
    with_words: FittedMap
    lexical_weight: float

    def for_weight(self, lexical_weight: float | None) -> Relevance:
        """The map of scores with the words' share of some weight.

        Args:
            lexical_weight: w; None or 0 for the reranker's scores alone.

        Returns:
            :data:`UNCALIBRATED` where none was fitted for this weight.
        """
        if not lexical_weight:
            return self.reranker
        return self.with_words if math.isclose(lexical_weight, self.lexical_weight) else UNCALIBRATED

    def to_json(self) -> str:
        """As a model's config tells it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what :meth:`to_json` wrote.

        Raises:
            InvalidInputError: It is something else.
        """
        try:
            fields = json.loads(text)
            return cls(_map(fields["reranker"]), _map(fields["with_words"]), float(fields["lexical_weight"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError("calibration", f"not as resrank calibrate writes it: {error}") from error


def relevance_of(calibration: Calibration | None, lexical_weight: float | None, *, words: bool) -> Relevance:
    """The map of an answer's scores.

    Args:
        calibration: What was fitted for the checkpoint; None for nothing.
        lexical_weight: w, where the caller named one; else it is the checkpoint's, for which the maps were fitted.
        words: Whether words have a share in the scores.
    """
    if calibration is None:
        return UNCALIBRATED
    if not words:
        return calibration.for_weight(None)
    return calibration.for_weight(calibration.lexical_weight if lexical_weight is None else lexical_weight)


def read_calibration(parameters: Mapping[str, str]) -> Calibration | None:
    """The maps that a model's config tells; None where it tells none.

    Args:
        parameters: Of the config.

    Raises:
        InvalidInputError: What it tells is none.
    """
    told = parameters.get(Parameter.CALIBRATION)
    return None if told is None else Calibration.from_json(told)


def _map(fields: Mapping[str, Any]) -> FittedMap:
    if fields["kind"] == "platt":
        return Platt(**fields)
    return Isotonic(tuple(fields["scores"]), tuple(fields["relevances"]), fields["kind"])
