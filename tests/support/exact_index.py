"""Brute force over passage vectors: what every index of a training run is compared with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np

from resrank.training.mining import FloatMatrix, HalfMatrix, Rows


class ExactIndex:
    """Implements :class:`resrank.training.mining.NegativeIndex`; of equal cosines the lower row comes first."""

    def __init__(self, vectors: HalfMatrix) -> None:
        self._vectors = _normalised(vectors)

    def nearest(self, queries: FloatMatrix, k: int) -> Rows:
        """See :meth:`resrank.training.mining.NegativeIndex.nearest`."""
        cosines = _normalised(queries) @ self._vectors.T
        return np.argsort(-cosines, axis=1, kind="stable")[:, :k].astype(np.int32)


class ExactIndexes:
    """Implements :class:`resrank.training.mining.IndexFactory`."""

    name = "exact"

    def over(self, vectors: HalfMatrix) -> AbstractContextManager[ExactIndex]:
        """See :meth:`resrank.training.mining.IndexFactory.over`."""
        return nullcontext(ExactIndex(vectors))


def _normalised(vectors: HalfMatrix | FloatMatrix) -> FloatMatrix:
    wide = vectors.astype(np.float32)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)
