"""A search for a framework, whose retrievers return passages with one score each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resrank.client import AsyncResRankClient, Calibration, RankedPassage, ResRankClient, SearchResult
from resrank.client.whole_call import WholeCall
from resrank.core.calibration import relevance_of
from resrank.core.documents import fit_query
from resrank.core.filters import Filter
from resrank.core.search import DEFAULT_CANDIDATES, SearchMode
from resrank.core.truncation import Side


@dataclass(frozen=True)
class SearchingOptions:
    """How an adapter searches.

    Attributes:
        candidates: Passages to retrieve and rerank.
        mode: How they are found: ``hybrid``, ``dense`` or ``lexical``.
        rerank: Whether the reranker orders them.
        lexical_weight: w of BM25; None for the checkpoint's.
        min_score: Least relevance of what is returned, 0 to 1; of a reranked search alone.
        collection: Whose passages, by name or alias; empty for the default one.
        filter: What a passage's metadata must meet to be found, as the client takes it; None for nothing.
        truncate: Whether a query that is too long, in tokens or bytes, is cut, else refused.
        on_failure: What is wanted where models fail, ``error`` or ``retrieval_order``; None for the client's setting.
    """

    candidates: int = DEFAULT_CANDIDATES
    mode: str = SearchMode.HYBRID
    rerank: bool = True
    lexical_weight: float | None = None
    min_score: float | None = None
    truncate: bool = True
    on_failure: str | None = None
    collection: str = ""
    filter: Filter | str | None = None


@dataclass(frozen=True)
class FoundPassage:
    """One passage that a search found.

    Attributes:
        passage: As the client has it.
        relevance: 0 to 1; None where it was not reranked.
    """

    passage: RankedPassage
    relevance: float | None

    @property
    def metadata(self) -> dict[str, object]:
        """What frameworks keep beside a text: the passage's own, title, scores and its place as it was found."""
        told = {
            "title": self.passage.title,
            "relevance_score": self.relevance,
            "score": self.passage.score,
            "dense_score": self.passage.dense_score,
            "lexical_score": self.passage.lexical_score,
            "candidate_rank": self.passage.candidate_rank,
        }
        return {**(self.passage.metadata or {}), **{name: value for name, value in told.items() if value is not None}}


def search(client: ResRankClient, query: str, k: int, options: SearchingOptions) -> list[FoundPassage]:
    """Searches the index.

    Args:
        client: Speaks to the servers.
        query: The query.
        k: Passages to return.
        options: How.

    Returns:
        Best first.

    Raises:
        ResRankError: What the client raises.
    """
    whole = WholeCall.of(client, options.on_failure)
    result = client.search(
        fit_query(query, truncate=options.truncate, side=Side.RIGHT),
        k,
        candidates=max(k, options.candidates),
        mode=options.mode,
        rerank=options.rerank,
        lexical_weight=options.lexical_weight,
        truncate=options.truncate,
        on_failure=options.on_failure,
        collection=options.collection,
        filter=options.filter,
        include_metadata=True,
        timeout_s=whole.left_s(),
    )
    calibration = whole.ask(client.calibration, triton=result.triton) if result.reranked else None
    return _found(result, calibration, options)


async def search_async(client: AsyncResRankClient, query: str, k: int, options: SearchingOptions) -> list[FoundPassage]:
    """As :func:`search`."""
    whole = WholeCall.of(client, options.on_failure)
    result = await client.search(
        fit_query(query, truncate=options.truncate, side=Side.RIGHT),
        k,
        candidates=max(k, options.candidates),
        mode=options.mode,
        rerank=options.rerank,
        lexical_weight=options.lexical_weight,
        truncate=options.truncate,
        on_failure=options.on_failure,
        collection=options.collection,
        filter=options.filter,
        include_metadata=True,
        timeout_s=whole.left_s(),
    )
    calibration = await whole.ask_async(client.calibration, triton=result.triton) if result.reranked else None
    return _found(result, calibration, options)


def _found(result: SearchResult, calibration: Calibration | None, options: SearchingOptions) -> list[FoundPassage]:
    if not result.reranked:
        return [FoundPassage(passage, None) for passage in result.passages]
    words = any(passage.lexical_score is not None for passage in result.passages)
    relevance = relevance_of(calibration, options.lexical_weight, words=words)
    values = relevance.of(np.array([passage.score for passage in result.passages], np.float64)).tolist()
    found = [FoundPassage(passage, value) for passage, value in zip(result.passages, values, strict=True)]
    least = 0.0 if options.min_score is None else options.min_score
    return [each for each in found if each.relevance is not None and each.relevance >= least]
