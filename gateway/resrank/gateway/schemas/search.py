"""This project's own: a search in one call, with every part of every score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from resrank.client import RankedPassage, SearchResult
from resrank.core.calibration import Calibration, relevance_of
from resrank.core.errors import InvalidInputError, Place, ResRankError, ServerFailedError
from resrank.core.fail_open import OnFailure
from resrank.core.fusion import MAX_LEXICAL_WEIGHT, Fusion
from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.metadata import MetadataValue
from resrank.core.names import Tensor
from resrank.core.search import DEFAULT_CANDIDATES, DEFAULT_K, SearchMode
from resrank.gateway.schemas.common import Answer, OwnBody, Score, Timings

Count = Annotated[int, Field(ge=1, le=MAX_MESSAGE_RECORDS)]


class Search(OwnBody):
    """A request to search.

    Attributes:
        query: The query.
        k: Passages to return, at most ``candidates``.
        candidates: Passages to retrieve and rerank.
        mode: How candidates are found: ``dense`` (embeddings), ``lexical`` (words) or ``hybrid`` (both, fused).
        fusion: How ``hybrid`` joins both: ``weighted`` scores or ``rrf``, reciprocal ranks.
        rerank: Whether the reranker orders them.
        lexical_weight: w of BM25; the checkpoint's where it is missing.
        collection: Whose passages, by name or alias; the default collection's where it is missing.
        filter: What a passage's metadata must meet to be found, as text: ``year >= 2020 and lang in (en, de)``.
        include_metadata: Whether each passage comes with its metadata.
        min_score: Least relevance of what is returned; of a reranked search alone.
        truncate: Whether a query that is too long is cut, at the right.
        on_failure: What to do where the models are down, full or late; the gateway's setting where it is missing.
    """

    query: str
    k: Count = DEFAULT_K
    candidates: Count = DEFAULT_CANDIDATES
    mode: SearchMode = SearchMode.HYBRID
    fusion: Fusion = Fusion.WEIGHTED
    rerank: bool = True
    lexical_weight: Annotated[float, Field(ge=0, le=MAX_LEXICAL_WEIGHT)] | None = None
    collection: str | None = None
    filter: Annotated[str, Field(examples=["year >= 2020 and lang in (en, de)"])] | None = None
    include_metadata: bool = False
    min_score: Score | None = None
    truncate: bool = True
    on_failure: OnFailure | None = None

    @model_validator(mode="after")
    def _at_most_the_candidates(self) -> Self:
        if self.k > self.candidates:
            raise ValueError(f"k: more results than candidates (limit {self.candidates}, got {self.k})")
        return self


_OTHER_NAMES: dict[str, str] = {
    Tensor.QUERY: "query",
    Tensor.TEXT: "query",  # of the model that embeds it
    "text": "query",  # of the sidecar
    "request": "body",  # of no field, or too large as a whole
}


def search_error(error: InvalidInputError) -> ResRankError:
    """What the servers refused, as a caller of this schema knows it.

    Args:
        error: About a field as they name it.

    Returns:
        The same about a field of the request; of what no request has, vectors and settings, an error that is the
        servers' own.
    """
    name = error.place.name
    if name in Search.model_fields:
        return error
    if name in _OTHER_NAMES:
        return error.at(Place(_OTHER_NAMES[name]))
    return ServerFailedError(f"search: the servers refused what was made of the request ({error})")


class FoundPassage(Answer):
    """One passage, with what its place came from.

    Attributes:
        rank: Its place, from 1.
        id: In the index.
        title: Of the passage.
        text: Likewise.
        relevance_score: 0 to 1, see ``calibration``; missing where it was not reranked.
        score: What the order is by.
        rerank_score: The reranker's alone.
        dense_score: Cosine of query and passage.
        lexical_score: BM25.
        candidate_rank: Place in retrieval order, from 1.
        candidate_score: The retriever's.
        metadata: Of the passage; missing where it was not asked for.
    """

    rank: int
    id: str | None
    title: str | None
    text: str | None
    relevance_score: float | None
    score: float
    rerank_score: float | None
    dense_score: float | None
    lexical_score: float | None
    candidate_rank: int
    candidate_score: float | None
    metadata: dict[str, MetadataValue] | None


class SearchAnswer(Answer):
    """What a search found.

    Attributes:
        id: Of the request.
        mode: How the candidates were found.
        collection: Where: what an alias stood for, or without the setting ``retrieval`` the alias itself.
        reranked: Whether the reranker ordered them.
        reason: Why not, where it was asked to: ``shed``, ``deadline``, ``unavailable`` or ``failed``.
        calibration: How scores became relevance.
        lexical_weight: w that the words' share was weighed with; missing where there is none.
        max_lexical_score: The best BM25 of any passage of the index, with which shares of another weight can be added;
            missing where no passage returned has a share.
        passages: Best first.
        timings: Milliseconds of each stage, and ``total`` as the gateway saw it.
    """

    id: str
    mode: str
    collection: str
    reranked: bool
    reason: str | None
    calibration: str
    lexical_weight: float | None
    max_lexical_score: float | None
    passages: list[FoundPassage]
    timings: Timings


def search_answer(
    found: SearchResult, body: Search, lexical_weight: float | None, calibration: Calibration | None, request_id: str
) -> SearchAnswer:
    """An answer in this schema.

    Args:
        found: What the client found.
        body: What was asked for.
        lexical_weight: w; None where nothing was reranked, or the models did not say.
        calibration: What was fitted for the checkpoint.
        request_id: Of the request.
    """
    words = any(passage.lexical_score is not None for passage in found.passages)
    relevance = relevance_of(calibration, body.lexical_weight, words=words)
    scores = np.array([passage.score for passage in found.passages], np.float64)
    values = relevance.of(scores).tolist() if found.reranked else [None] * len(scores)
    passages = [
        FoundPassage(
            rank=passage.rank,
            id=passage.id,
            title=passage.title,
            text=passage.text,
            relevance_score=value,
            score=passage.score,
            rerank_score=passage.rerank_score,
            dense_score=passage.dense_score,
            lexical_score=passage.lexical_score,
            candidate_rank=passage.candidate_rank,
            candidate_score=passage.candidate_score,
            metadata=None if passage.metadata is None else dict(passage.metadata),
        )
        for passage, value in zip(found.passages, values, strict=True)
        if value is None or body.min_score is None or value >= body.min_score
    ]
    return SearchAnswer(
        id=request_id,
        mode=found.mode,
        collection=found.collection,
        reranked=found.reranked,
        reason=None if found.failure is None else found.failure.outcome.value,
        calibration=relevance.name,
        lexical_weight=lexical_weight if words else None,
        max_lexical_score=_best_lexical_score(found.passages, lexical_weight),
        passages=passages,
        timings=dict(found.timings),
    )


def _best_lexical_score(passages: Sequence[RankedPassage], weight: float | None) -> float | None:
    """B of score = rerank_score + w * lexical_score / B, by the passage whose share is the largest."""
    if not weight:
        return None
    known = [
        (passage.lexical_score, passage.score - passage.rerank_score)
        for passage in passages
        if passage.lexical_score and passage.rerank_score is not None
    ]
    lexical, share = max(known, default=(0.0, 0.0))
    return weight * lexical / share if share > 0 else None
