"""What a foreign candidate matrix is checked for before anything is computed from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError
from resrank.core.names import Tensor


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
    finite = np.isfinite(candidates).all(axis=2)
    useless = ~(finite & candidates.any(axis=2))
    if not useless.any():
        return
    row, index = (int(position) for position in np.argwhere(useless)[0])
    name = f"{Tensor.CANDIDATES}[{index}]" if rows == 1 else f"{Tensor.CANDIDATES}[{row}][{index}]"
    raise InvalidInputError(name, _what_is_wrong(candidates[row, index]))


def _what_is_wrong(vector: NDArray[Any]) -> str:
    if np.isnan(vector).any():
        return "has a NaN"
    return "has an infinity" if np.isinf(vector).any() else "is the zero vector"
