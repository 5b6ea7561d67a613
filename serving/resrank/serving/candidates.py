"""What foreign vectors are checked for before anything is computed from them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError, Place
from resrank.core.names import Tensor
from resrank.core.tokenization import row_field
from resrank.core.vectors import first_bad_vector, vector_problem

_SHORTEST, _LONGEST = 1e-12, 1e18
"""Of a query's vector: cosines are computed in FP32, which holds the squares of both."""


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


def validate_query_embeddings(embeddings: NDArray[np.float32]) -> None:
    """Refuses vectors of queries that nothing can be compared with: callers of ``rerank_embedded`` bring their own.

    Args:
        embeddings: FP32 [B, d].

    Raises:
        InvalidInputError: One is zero, has a NaN or an infinity, or is so short or long that FP32 does not hold its
            square.
    """
    for row, embedding in enumerate(embeddings):
        place = row_field(Tensor.QUERY_EMBEDDING, row, len(embeddings))
        if (problem := vector_problem(embedding)) is not None:
            raise InvalidInputError(place, problem)
        length = float(np.linalg.norm(embedding.astype(np.float64)))
        if not _SHORTEST <= length <= _LONGEST:
            limit = f"{_SHORTEST:g} to {_LONGEST:g}"
            raise InvalidInputError(place, "length out of range", limit=limit, value=f"{length:g}")
