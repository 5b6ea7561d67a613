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
    passages = []
    for rank, place in enumerate(ranking(scores), start=1):
        index = int(indices[place])
        listed = index if places is None else places[index]
        passages.append(
            RankedPassage(
                rank=rank,
                index=listed,
                score=float(scores[place]),
                id=None if ids is None else ids[index],
                title=None if titles is None else titles[index],
                text=None if texts is None else texts[index],
                candidate_rank=listed + 1,
                candidate_score=_number(candidate_scores, index),
                dense_score=_number(dense_scores, index),
                lexical_score=_number(lexical_scores, index),
                rerank_score=_number(rerank_scores, int(place)),
                metadata=None if metadata is None else metadata[index],
            )
        )
    return tuple(passages)


def _number(values: Float32 | None, place: int) -> float | None:
    return None if values is None else float(values[place])
