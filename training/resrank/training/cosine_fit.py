"""Fits A(c) = slope · (c − center) + offset, one scale for cosines wherever an encoder's lie, from passages alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError
from resrank.core.fusion import CosineMap
from resrank.training.mining import FloatMatrix, HalfMatrix, NegativeIndex

OFFSET = 0.05
"""What the cosine of two random passages becomes: all-MiniLM-L6-v2's own, on whose scale constants were found."""

DEVIATION = 0.0595
"""What the deviation of the cosines of the 100 passages nearest to a question becomes: with it HotpotQA-1k's questions
give e5-small the slope of 4.84 with which rates and penalties were found."""

QUESTIONS = 300
"""Lists of which the deviation is a mean: it is known to 2 % then."""

PASSAGES = 5000
"""Passages that are encoded at most."""

_DEPTH = 100
_PAIRS = 100_000
_SEED = 0xF17


@dataclass(frozen=True)
class CosineFit:
    """A, and what it was fitted to.

    Attributes:
        cosine_map: A.
        passages: How many random pairs were drawn from.
        random: Mean cosine of these pairs.
        questions: How many lists.
        deviation: Mean deviation of the cosines of one.
    """

    cosine_map: CosineMap
    passages: int
    random: float
    questions: int
    deviation: float


def fit_cosines(vectors: HalfMatrix, questions: FloatMatrix, index: NegativeIndex) -> CosineFit:
    """Maps the cosine of random passages to 0.05, and the deviation of a list's cosines to 0.0595.

    Args:
        vectors: FP16 [P, d], passages' vectors.
        questions: FP32 [Q, d], questions' vectors.
        index: Over the passages.

    Raises:
        InvalidInputError: There are too few passages for a list and what lies beyond, or they are all alike.
    """
    if len(vectors) < 2 * _DEPTH:
        raise InvalidInputError(
            "corpus", "too few distinct passages to fit cosines to", limit=2 * _DEPTH, value=len(vectors)
        )
    units = _units(vectors.astype(np.float64))
    rng = np.random.default_rng(_SEED)
    one, other = rng.integers(len(units), size=(2, _PAIRS))
    pairs = one != other
    random = float(np.einsum("nd,nd->n", units[one[pairs]], units[other[pairs]]).mean())
    asked = _units(questions.astype(np.float64))
    nearest = index.nearest(questions, _DEPTH)
    deviation = float(np.einsum("qnd,qd->qn", units[nearest], asked).std(axis=1).mean())
    if deviation < 1e-6:
        raise InvalidInputError("corpus", "its passages are all alike to the encoder: no scale can be read off them")
    # Rounded to what is told of it, so that whoever writes it down has the same map.
    found = CosineMap(slope=round(DEVIATION / deviation, 3), center=round(random, 4), offset=OFFSET)
    return CosineFit(found, len(units), random, len(asked), deviation)


def _units(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    units: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return units
