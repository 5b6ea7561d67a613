"""Candidates brought into their order by their scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from resrank.client.results import RankedPassage
from resrank.core.scoring import ranking

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


def rank_candidates(
    scores: Float32,
    indices: Int64,
    *,
    texts: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    candidate_scores: Sequence[float] | None = None,
) -> tuple[RankedPassage, ...]:
    """Orders candidates by score descending, ties by input index.

    Args:
        scores: FP32 [n], of the candidates that ``indices`` names.
        indices: INT64 [n], places in the caller's list, ascending.
        texts: Of all candidates in the caller's list, if known.
        titles: Likewise.
        ids: Likewise.
        candidate_scores: The retriever's scores, likewise.
    """
    passages = []
    for rank, place in enumerate(ranking(scores), start=1):
        index = int(indices[place])
        passages.append(
            RankedPassage(
                rank=rank,
                index=index,
                score=float(scores[place]),
                id=None if ids is None else ids[index],
                title=None if titles is None else titles[index],
                text=None if texts is None else texts[index],
                candidate_rank=index + 1,
                candidate_score=None if candidate_scores is None else candidate_scores[index],
            )
        )
    return tuple(passages)
