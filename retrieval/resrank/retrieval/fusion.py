"""Reciprocal rank fusion: joins rankings whose scores cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence

from resrank.retrieval.records import Keys

RRF_K = 60
"""The constant k of Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
Learning Methods", SIGIR 2009."""


def reciprocal_rank_fusion(rankings: Sequence[Keys]) -> list[tuple[int, float]]:
    """Fuses rankings by the sum of 1 / (60 + rank) over the lists a key stands in, ranks counted from 1.

    Args:
        rankings: Keys, best first, without repetition inside a list.

    Returns:
        Keys and fused scores, best first; ties go to the key that an earlier list, or a better rank in it, named first.
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking.tolist(), start=1):
            scores[key] = scores.get(key, 0.0) + 1.0 / (RRF_K + rank)
    # sorted() is stable and dicts keep insertion order: that is the tie rule.
    return sorted(scores.items(), key=lambda item: -item[1])
