"""Vectors with the structure that embeddings of texts have: topics within fields, and queries among them.

Independent Gaussian vectors have none: in 384 dimensions all are about equally far from each other, an approximate
index can only guess, and its recall says nothing about text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resrank.core.scoring import Float32, normalize

_TOPIC_SIZE = 50  # so that the best 100 of a query reach beyond its own topic
_FIELD_TOPICS = 20
_TOPIC_SPREAD = 0.8  # length of a topic's deviation from its field, whose own is 1
_PASSAGE_SPREAD = 0.8  # of a passage's from its topic
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class ClusteredVectors:
    """A corpus and queries.

    Attributes:
        passages: FP16 [n, d] of length 1, in random order.
        queries: FP32 [q, d] of length 1, drawn as passages are and not among them.
    """

    passages: NDArray[np.float16]
    queries: Float32


def clustered_vectors(n: int, d: int, queries: int, *, seed: int = 0) -> ClusteredVectors:
    """Draws fields on the sphere, topics around each field, and passages and queries around topics.

    Args:
        n: Passages.
        d: Their dimension.
        queries: How many.
        seed: Of all draws.
    """
    generator = np.random.default_rng(seed)
    topics = max(1, n // _TOPIC_SIZE)
    fields = _directions(generator, max(1, topics // _FIELD_TOPICS), d)
    centres = _around(generator, fields[generator.integers(len(fields), size=topics)], _TOPIC_SPREAD)
    passages = np.empty((n, d), np.float16)
    for start in range(0, n, _ROWS_AT_ONCE):
        rows = passages[start : start + _ROWS_AT_ONCE]
        rows[:] = _around(generator, centres[generator.integers(topics, size=len(rows))], _PASSAGE_SPREAD)
    asked = _around(generator, centres[generator.integers(topics, size=queries)], _PASSAGE_SPREAD)
    return ClusteredVectors(passages, asked)


def nearest(vectors: ClusteredVectors, k: int) -> NDArray[np.int64]:
    """Int64 [q, k]: the passages with the greatest cosine to each query, by comparing with all of them."""
    scores = np.empty((len(vectors.queries), len(vectors.passages)), np.float32)
    for start in range(0, len(vectors.passages), _ROWS_AT_ONCE):
        block = normalize(vectors.passages[start : start + _ROWS_AT_ONCE].astype(np.float32))
        scores[:, start : start + len(block)] = vectors.queries @ block.T
    best: NDArray[np.int64] = np.argpartition(-scores, k - 1, axis=1)[:, :k].astype(np.int64)
    return best


def recall(found: Sequence[NDArray[np.int64]], exact: NDArray[np.int64]) -> float:
    """The share of the exact neighbours that were found, over all queries.

    Args:
        found: Each query's results, int64; -1 stands for none.
        exact: Int64 [q, k], each query's true ones.
    """
    hits = sum(len(np.intersect1d(one, other)) for one, other in zip(found, exact, strict=True))
    return hits / exact.size


def _directions(generator: np.random.Generator, count: int, d: int) -> Float32:
    return normalize(generator.standard_normal((count, d), np.float32))


def _around(generator: np.random.Generator, centres: Float32, spread: float) -> Float32:
    return normalize(centres + spread * _directions(generator, *centres.shape))
