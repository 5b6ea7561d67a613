"""What a foreign candidate matrix is checked for before anything is computed from it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError, Place
from resrank.core.names import Tensor
from resrank.core.vectors import first_bad_vector, vector_problem


def validate_candidates(candidates: NDArray[np.float16], *, max_passages: int, dim: int) -> None:
    """Refuses candidates that have no meaningful score.

    Args:
        candidates: FP16 [B, N, d'].
        max_passages: Largest N.
        dim: d, the encoder's dimension.

    Raises:
        InvalidInputError: N is 0 or over the maximum, d' is not d, or a vector is zero or has a NaN or an infinity;
            the first such vector is named, ``CANDIDATES[i]`` or, with several rows, ``CANDIDATES[row][i]``.
    """
    rows, count, width = candidates.shape
    if count == 0:
        raise InvalidInputError(Tensor.CANDIDATES, "no candidates", limit="at least 1", value=0)
    if count > max_passages:
        raise InvalidInputError(Tensor.CANDIDATES, "too many candidates in one pass", limit=max_passages, value=count)
    if width != dim:
        raise InvalidInputError(Tensor.CANDIDATES, "wrong embedding dimension", limit=dim, value=width)
    if (place := first_bad_vector(candidates)) is not None:
        problem = vector_problem(candidates[place])
        assert problem is not None
        raise InvalidInputError(Place(Tensor.CANDIDATES, place[-1:] if rows == 1 else place), problem)
