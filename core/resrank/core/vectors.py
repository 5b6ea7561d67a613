"""Which embeddings have no meaningful score, and why: the same rule and the same words for all who take them in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_INFINITY = np.uint16(0x7C00)
_ALL_BUT_SIGN = np.uint16(0x7FFF)


def first_bad_vector(vectors: NDArray[np.float16]) -> tuple[int, ...] | None:
    """Where the first vector stands that is zero or has a NaN or an infinity.

    Args:
        vectors: FP16 [..., d], contiguous.

    Returns:
        Its index in the leading axes; None when all are good.
    """
    # On the bits: NumPy has no vector code for half precision, for integers it does.
    # Without the sign they are in the order of the numbers, infinity and NaN last.
    largest = (vectors.view(np.uint16) & _ALL_BUT_SIGN).max(axis=-1, initial=0)
    found = np.argwhere((largest >= _INFINITY) | (largest == 0))
    return tuple(int(number) for number in found[0]) if len(found) else None


def vector_problem(vector: NDArray[Any]) -> str | None:
    """What is wrong with a vector, in words; None when nothing is.

    Args:
        vector: Any float type, [d].
    """
    if np.isnan(vector).any():
        return "contains NaN"
    if np.isinf(vector).any():
        return "contains Inf"
    return None if vector.any() else "is a zero vector"
