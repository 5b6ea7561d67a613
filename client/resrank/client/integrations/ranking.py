"""Reranking for a framework: what of its list can be ranked, and where each document then stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resrank.client import AsyncResRankClient, Calibration, RerankResult, ResRankClient
from resrank.core.calibration import relevance_of


@dataclass(frozen=True)
class RankingOptions:
    """How an adapter reranks.

    Attributes:
        top_n: Documents to return; None for all.
        min_score: Least relevance of what is returned, 0 to 1.
        stored: Whether documents are passages of the index, known by their ids: no text is sent, and none encoded.
        lexical_weight: Of stored passages: w of BM25; None for the checkpoint's.
        collection: Of stored passages: whose they are, by name or alias; empty for the default one.
        truncate: Whether texts over the token maximum are cut, else refused.
        on_failure: What is wanted where models fail, ``error`` or ``retrieval_order``; None for the client's setting.
    """

    top_n: int | None = None
    min_score: float | None = None
    stored: bool = False
    lexical_weight: float | None = None
    truncate: bool = True
    on_failure: str | None = None
    collection: str = ""


@dataclass(frozen=True)
class PlacedDocument:
    """One document of a ranking.

    Attributes:
        index: Its place in the framework's list.
        relevance: 0 to 1; None where nothing was reranked and the order is the list's own.
    """

    index: int
    relevance: float | None


def rank(client: ResRankClient, query: str, documents: Sequence[str], options: RankingOptions) -> list[PlacedDocument]:
    """Ranks documents.

    Those without words, ids that the index does not have, and ids that stand there twice come last, with relevance 0.

    Args:
        client: Speaks to the servers.
        query: The query.
        documents: Texts, or ids with ``options.stored``, in retrieval order.
        options: How.

    Returns:
        Best first.

    Raises:
        ResRankError: What the client raises.
    """
    usable = _usable(documents, options)
    if not usable:
        return _placed(len(documents), usable, None, None, options)
    listed = [documents[place] for place in usable]
    if options.stored:
        result = client.rerank_stored(
            query,
            listed,
            lexical_weight=options.lexical_weight,
            collection=options.collection,
            truncate=options.truncate,
            on_failure=options.on_failure,
        )
    else:
        result = client.rerank(query, passages=listed, truncate=options.truncate, on_failure=options.on_failure)
    calibration = client.calibration(triton=result.triton) if result.reranked else None
    return _placed(len(documents), usable, result, calibration, options)


async def rank_async(
    client: AsyncResRankClient, query: str, documents: Sequence[str], options: RankingOptions
) -> list[PlacedDocument]:
    """As :func:`rank`."""
    usable = _usable(documents, options)
    if not usable:
        return _placed(len(documents), usable, None, None, options)
    listed = [documents[place] for place in usable]
    if options.stored:
        result = await client.rerank_stored(
            query,
            listed,
            lexical_weight=options.lexical_weight,
            collection=options.collection,
            truncate=options.truncate,
            on_failure=options.on_failure,
        )
    else:
        result = await client.rerank(query, passages=listed, truncate=options.truncate, on_failure=options.on_failure)
    calibration = await client.calibration(triton=result.triton) if result.reranked else None
    return _placed(len(documents), usable, result, calibration, options)


def _usable(documents: Sequence[str], options: RankingOptions) -> list[int]:
    """Places of what can be ranked; of an id that stands there twice the first."""
    places = [place for place, document in enumerate(documents) if document.strip()]
    if options.stored:
        places = sorted({documents[place]: place for place in reversed(places)}.values())
    return places


def _placed(
    count: int,
    usable: Sequence[int],
    result: RerankResult | None,
    calibration: Calibration | None,
    options: RankingOptions,
) -> list[PlacedDocument]:
    placed: list[PlacedDocument] = []
    if result is not None and result.reranked:
        words = any(passage.lexical_score is not None for passage in result.passages)
        relevance = relevance_of(calibration, options.lexical_weight, words=words)
        values = relevance.of(np.array([passage.score for passage in result.passages], np.float64)).tolist()
        placed = [
            PlacedDocument(usable[passage.index], value) for passage, value in zip(result.passages, values, strict=True)
        ]
    elif result is not None:
        return [PlacedDocument(place, None) for place in range(count)][: options.top_n]
    there = {document.index for document in placed}
    placed += [PlacedDocument(place, 0.0) for place in range(count) if place not in there]
    if options.min_score is not None:
        placed = [document for document in placed if (document.relevance or 0.0) >= options.min_score]
    return placed[: options.top_n]
