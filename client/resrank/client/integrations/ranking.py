"""Reranking for a framework: what of its list can be ranked, and where each document then stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from resrank.client import AsyncResRankClient, Calibration, RerankResult, ResRankClient
from resrank.client.whole_call import WholeCall
from resrank.core.calibration import relevance_of
from resrank.core.documents import Documents, fit_query, sort_ids, sort_texts
from resrank.core.errors import InvalidInputError, Place
from resrank.core.names import Tensor
from resrank.core.truncation import Side

_FIELD = "documents"
"""What errors call a framework's list, whatever its own class is called."""


@dataclass(frozen=True)
class RankingOptions:
    """How an adapter reranks.

    Attributes:
        top_n: Documents to return; None for all.
        min_score: Least relevance of what is returned, 0 to 1.
        stored: Whether documents are passages of the index, known by their ids: no text is sent, and none encoded.
        lexical_weight: Of stored passages: w of BM25; None for the checkpoint's.
        collection: Of stored passages: whose they are, by name or alias; empty for the default one.
        truncate: Whether query and texts that are too long, in tokens or bytes, are cut, else refused.
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

    Those without words, ids that the index does not have or cannot have, and ids that stand there twice come last, with
    relevance 0.

    Args:
        client: Speaks to the servers.
        query: The query.
        documents: Texts, or ids with ``options.stored``, in retrieval order.
        options: How.

    Returns:
        Best first.

    Raises:
        InvalidInputError: A document is refused, which the error names by its place in the list, or the query is.
        ResRankError: What the client raises.
    """
    usable = _usable(documents, options)
    if not usable.usable:
        return _placed(len(documents), usable, None, None, options)
    query = fit_query(query, truncate=options.truncate, side=Side.RIGHT)
    whole = WholeCall.of(client, options.on_failure)
    with _callers_places(usable):
        if options.stored:
            result = client.rerank_stored(
                query,
                usable.usable,
                lexical_weight=options.lexical_weight,
                collection=options.collection,
                truncate=options.truncate,
                on_failure=options.on_failure,
                timeout_s=whole.left_s(),
            )
        else:
            result = client.rerank(
                query,
                passages=usable.usable,
                truncate=options.truncate,
                on_failure=options.on_failure,
                timeout_s=whole.left_s(),
            )
    calibration = whole.ask(client.calibration, triton=result.triton) if result.reranked else None
    return _placed(len(documents), usable, result, calibration, options)


async def rank_async(
    client: AsyncResRankClient, query: str, documents: Sequence[str], options: RankingOptions
) -> list[PlacedDocument]:
    """As :func:`rank`."""
    usable = _usable(documents, options)
    if not usable.usable:
        return _placed(len(documents), usable, None, None, options)
    query = fit_query(query, truncate=options.truncate, side=Side.RIGHT)
    whole = WholeCall.of(client, options.on_failure)
    with _callers_places(usable):
        if options.stored:
            result = await client.rerank_stored(
                query,
                usable.usable,
                lexical_weight=options.lexical_weight,
                collection=options.collection,
                truncate=options.truncate,
                on_failure=options.on_failure,
                timeout_s=whole.left_s(),
            )
        else:
            result = await client.rerank(
                query,
                passages=usable.usable,
                truncate=options.truncate,
                on_failure=options.on_failure,
                timeout_s=whole.left_s(),
            )
    calibration = await whole.ask_async(client.calibration, triton=result.triton) if result.reranked else None
    return _placed(len(documents), usable, result, calibration, options)


def _usable(documents: Sequence[str], options: RankingOptions) -> Documents:
    """What can be ranked; of an id that stands there twice the first."""
    if options.stored:
        return sort_ids(documents, strict=False, field=_FIELD)
    return sort_texts(documents, truncate=options.truncate, side=Side.RIGHT, strict=False, field=_FIELD)


@contextmanager
def _callers_places(usable: Documents) -> Iterator[None]:
    """Errors about one of the documents name it as the caller counts, who has those too that were not sent."""
    try:
        yield
    except InvalidInputError as error:
        if error.place.name in (Tensor.PASSAGES, Tensor.TEXT, "ids") and error.place.index:
            raise error.at(Place(_FIELD, (usable.places[error.place.index[0]],))) from None
        raise


def _placed(
    count: int,
    usable: Documents,
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
            PlacedDocument(usable.places[passage.index], value)
            for passage, value in zip(result.passages, values, strict=True)
        ]
    elif result is not None:
        return [PlacedDocument(place, None) for place in range(count)][: options.top_n]
    there = {document.index for document in placed}
    placed += [PlacedDocument(place, 0.0) for place in range(count) if place not in there]
    if options.min_score is not None:
        placed = [document for document in placed if (document.relevance or 0.0) >= options.min_score]
    return placed[: options.top_n]
