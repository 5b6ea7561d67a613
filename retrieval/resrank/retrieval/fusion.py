"""The two ways in which HYBRID joins the dense and the lexical list."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from resrank.core.fusion import CosineMap, joint_scores
from resrank.retrieval.matches import LexicalMatches
from resrank.retrieval.records import FloatVector, Keys

RRF_K = 60
"""The constant k of Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
Learning Methods", SIGIR 2009."""

Ranked = tuple[Keys, FloatVector]


def reciprocal_rank_fusion(rankings: Sequence[Keys], k: int) -> Ranked:
    """Fuses rankings by the sum of 1 / (60 + rank) over the lists a key stands in, ranks counted from 1.

    Args:
        rankings: Keys, best first, without repetition inside a list.
        k: How many are wanted.

    Returns:
        Keys and fused scores of at most k, best first, ties by key.
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking.tolist(), start=1):
            scores[key] = scores.get(key, 0.0) + 1.0 / (RRF_K + rank)
    best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]
    return np.array([key for key, _ in best], np.int64), np.array([score for _, score in best], np.float32)


def weighted_fusion(
    dense: Ranked,
    matches: LexicalMatches,
    cosines_of: Callable[[Keys], FloatVector],
    cosine_map: CosineMap,
    weight: float,
    k: int,
    *,
    highest_unseen: float,
) -> Ranked:
    """The k best of the whole index by ``A(cosine) + weight * BM25 / best BM25``.

    A passage that is not among the k nearest and has no word of the query has k before it that are at least as good. Of
    those that have a word, only the cosines that could still bring them among the k best are computed.

    Args:
        dense: Keys and cosines of the k nearest, ties by key.
        matches: All that have a word of the query.
        cosines_of: Computes cosines.
        cosine_map: A.
        weight: w.
        k: How many are wanted.
        highest_unseen: No cosine outside ``dense`` is above it.

    Returns:
        Keys and joint scores of at most k, best first, ties by key.
    """
    words = matches.scores.astype(np.float32)

    def joint(cosines: FloatVector, bm25: FloatVector) -> FloatVector:
        return joint_scores(cosine_map.apply(cosines), bm25, matches.best, weight)

    keys, cosines = dense
    scores = joint(cosines, matches.scores_of(keys))
    if (weight == 0.0 or matches.best <= 0.0) and math.isfinite(highest_unseen):  # cosines alone decide
        best = np.lexsort((keys, -scores))[:k]
        return keys[best], scores[best]
    unseen = ~np.isin(matches.keys, keys)
    bounds = np.where(unseen, joint(np.full(len(words), highest_unseen, np.float32), words), -np.inf)
    # First those with the best words: the better the k-th best by then, the fewer of the others could still reach it.
    most = k
    while True:
        to_beat = np.partition(scores, -k)[-k] if len(scores) >= k else -np.inf
        hopeful = np.flatnonzero((bounds >= to_beat) & (bounds > -np.inf))
        if not len(hopeful):
            break
        if len(hopeful) > most:
            hopeful = hopeful[np.argpartition(words[hopeful], -most)[-most:]]
        keys = np.concatenate((keys, matches.keys[hopeful]))
        scores = np.concatenate((scores, joint(cosines_of(matches.keys[hopeful]), words[hopeful])))
        bounds[hopeful] = -np.inf
        most *= 4
    best = np.lexsort((keys, -scores))[:k]
    return keys[best], scores[best]
