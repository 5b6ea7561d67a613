"""Candidates brought into their order by their scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from resrank.client.results import RankedPassage
from resrank.core.metadata import Metadata
from resrank.core.scoring import ranking

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


def rank_candidates(
    scores: Float32,
    indices: Int64,
    *,
    rerank_scores: Float32 | None = None,
    texts: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    candidate_scores: Float32 | None = None,
    dense_scores: Float32 | None = None,
    lexical_scores: Float32 | None = None,
    metadata: Sequence[Metadata] | None = None,
    places: Sequence[int] | None = None,
) -> tuple[RankedPassage, ...]:
    """Orders candidates by score descending, ties by input index.

    Args:
        scores: FP32 [n], final, of the candidates that ``indices`` names.
        indices: INT64 [n], places in the caller's list, ascending.
        rerank_scores: FP32 [n], the reranker's, parallel to ``scores``.
        texts: Of all candidates in the caller's list, if known.
        titles: Likewise.
        ids: Likewise.
        candidate_scores: The retriever's scores, likewise.
        dense_scores: Cosines, likewise.
        lexical_scores: BM25, likewise.
        metadata: Likewise.
        places: Where the candidates stand in a list that has more of them; None where they are the list.
    """
    # Lists: to take a number out of an array costs ten times as much, and there are hundreds.
    found, finals, reranked = indices.tolist(), scores.tolist(), _numbers(rerank_scores)
    retrieved, cosines, words = _numbers(candidate_scores), _numbers(dense_scores), _numbers(lexical_scores)
    passages = []
    for rank, place in enumerate(ranking(scores).tolist(), start=1):
        index = found[place]
        listed = index if places is None else places[index]
        passages.append(
            RankedPassage(
                rank=rank,
                index=listed,
                score=finals[place],
                id=None if ids is None else ids[index],
                title=None if titles is None else titles[index],
                text=None if texts is None else texts[index],
                candidate_rank=listed + 1,
                candidate_score=None if retrieved is None else retrieved[index],
                dense_score=None if cosines is None else cosines[index],
                lexical_score=None if words is None else words[index],
                rerank_score=None if reranked is None else reranked[place],
                metadata=None if metadata is None else metadata[index],
            )
        )
    return tuple(passages)


def _numbers(values: Float32 | None) -> list[float] | None:
    return None if values is None else values.tolist()
