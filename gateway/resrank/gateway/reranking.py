"""Reranking for every schema: what a request asks for, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from resrank.client import AsyncResRankClient, RankedPassage, RerankResult
from resrank.client.whole_call import WholeCall
from resrank.core.calibration import Calibration, relevance_of
from resrank.core.documents import Documents, fit_query, sort_ids, sort_texts
from resrank.core.errors import InvalidInputError, Place
from resrank.core.names import Parameter, Priority, Tensor
from resrank.core.truncation import Side, Truncation

_MOST_REFUSALS = 8
"""Documents that the models may refuse, each after another call, before the request fails."""


@dataclass(frozen=True)
class RerankTask:
    """What a request asks for, whatever its schema.

    Attributes:
        query: The query.
        documents: Texts, or with ``stored`` ids of passages in the index.
        stored: Which of them.
        field: What the schema calls the list, for errors.
        top_n: Documents to return; None for all.
        min_score: Least relevance of what is returned.
        truncate: Whether texts that are too long are cut.
        side: Where.
        token_limit: Tokens of a document that are read at most; None for as many as the model reads.
        strict: Whether a document that cannot be ranked fails the request.
        lexical_weight: Of stored passages: w of BM25; None for the checkpoint's.
        collection: Of stored passages: whose they are, by name or alias; empty for the default collection.
        include_texts: Whether the answer has the texts of stored passages.
        on_failure: What is wanted where the models fail; None for the gateway's setting.
        priority: How urgent it is.
    """

    query: str
    documents: tuple[str, ...]
    stored: bool = False
    field: str = "documents"
    top_n: int | None = None
    min_score: float | None = None
    truncate: bool = True
    side: Side = Side.RIGHT
    token_limit: int | None = None
    strict: bool = False
    lexical_weight: float | None = None
    collection: str = ""
    include_texts: bool = False
    on_failure: str | None = None
    priority: Priority = Priority.INTERACTIVE


@dataclass(frozen=True)
class RankedDocument:
    """One document of an answer.

    Attributes:
        index: Its place in the request.
        relevance: 0 to 1.
        text: Its text; None of a stored passage whose text was not asked for, or that there is none of.
        passage: What the client said of it; None where it could not be ranked.
    """

    index: int
    relevance: float
    text: str | None
    passage: RankedPassage | None


@dataclass(frozen=True)
class Ranking:
    """An answer, whatever its schema.

    Attributes:
        documents: Best first.
        reranked: Whether the reranker ordered them.
        reason: Why not; None where it did.
        truncated: Places of documents that were read only in part.
        calibration: How scores became relevance.
        unusable: Place to what is wrong, of documents that could not be ranked; they stand last, with relevance 0.
        timings: Milliseconds of each stage.
        tokens_read: Tokens of query and documents that the models read for it.
    """

    documents: tuple[RankedDocument, ...]
    reranked: bool
    reason: str | None
    calibration: str
    truncated: tuple[int, ...]
    unusable: Mapping[int, str]
    timings: Mapping[str, float] = field(default_factory=dict)
    tokens_read: int = 0


class Reranker:
    """Reranks through the client library.

    Args:
        client: Speaks to Triton and the sidecar.
    """

    def __init__(self, client: AsyncResRankClient) -> None:
        self._client = client

    async def rank(self, task: RerankTask) -> Ranking:
        """Ranks the documents of a request.

        Args:
            task: What is wanted.

        Raises:
            InvalidInputError: The query breaks a rule, or with ``strict`` a document does.
            ResRankError: What the client raises.
        """
        query = fit_query(task.query, truncate=task.truncate, side=task.side)
        if task.stored:
            documents = sort_ids(task.documents, strict=task.strict, field=task.field)
        else:
            documents = sort_texts(
                task.documents, truncate=task.truncate, side=task.side, strict=task.strict, field=task.field
            )
        refused, whole = 0, WholeCall.of(self._client, task.on_failure)
        while documents.usable:
            try:
                result = await self._ask(replace(task, query=query), documents, whole.left_s())
            except InvalidInputError as error:
                documents = _without(error, documents, task, may_drop=refused < _MOST_REFUSALS)
                refused += 1
            else:
                calibration = None
                if result.reranked:
                    calibration = await whole.ask_async(self._client.calibration, triton=result.triton)
                return _ranking(task, documents, result, calibration)
        return _ranking(task, documents, RerankResult((), {}), None)

    async def _ask(self, task: RerankTask, documents: Documents, timeout_s: float) -> RerankResult:
        if task.stored:
            result = await self._client.rerank_stored(
                task.query,
                documents.usable,
                collection=task.collection,
                lexical_weight=task.lexical_weight,
                include_texts=task.include_texts,
                truncate=Truncation(task.side) if task.truncate else False,
                on_failure=task.on_failure,
                priority=task.priority,
                timeout_s=timeout_s,
            )
            if result.missing_ids and task.strict:
                place = documents.places[documents.usable.index(result.missing_ids[0])]
                raise InvalidInputError(Place(task.field, (place,)), "not in the index")
            return result
        return await self._client.rerank(
            task.query,
            passages=documents.usable,
            truncate=Truncation(task.side, task.token_limit) if task.truncate else False,
            on_failure=task.on_failure,
            priority=task.priority,
            timeout_s=timeout_s,
        )


def _ranking(task: RerankTask, documents: Documents, result: RerankResult, calibration: Calibration | None) -> Ranking:
    unusable = dict(documents.unusable)
    missing = set(result.missing_ids)
    unusable |= {
        place: "not in the index"
        for place, id_ in zip(documents.places, documents.usable, strict=True)
        if id_ in missing
    }
    words = any(passage.lexical_score is not None for passage in result.passages)
    chosen = relevance_of(calibration, task.lexical_weight, words=words)
    if result.reranked:
        relevance = chosen.of(np.array([passage.score for passage in result.passages], np.float64)).tolist()
    else:  # the order is all there is
        count = len(result.passages)
        relevance = [(count - rank) / (count + 1) for rank in range(count)]
    ranked = [
        RankedDocument(documents.places[passage.index], value, _text(task, documents, passage), passage)
        for passage, value in zip(result.passages, relevance, strict=True)
    ]
    ranked += [
        RankedDocument(place, 0.0, None if task.stored else task.documents[place], None) for place in sorted(unusable)
    ]
    if task.min_score is not None and result.reranked:
        ranked = [document for document in ranked if document.relevance >= task.min_score]
    return Ranking(
        tuple(ranked[: task.top_n]),
        result.reranked,
        None if result.failure is None else result.failure.outcome.value,
        chosen.name,
        tuple(sorted({*documents.cut, *(documents.places[place] for place in result.truncated)})),
        unusable,
        result.timings,
        result.tokens_read,
    )


def _text(task: RerankTask, documents: Documents, passage: RankedPassage) -> str | None:
    return passage.text if task.stored else task.documents[documents.places[passage.index]]


def _without(error: InvalidInputError, documents: Documents, task: RerankTask, *, may_drop: bool) -> Documents:
    """The documents but for the one that the models refused.

    Args:
        error: What they said.
        documents: What they were asked about.
        task: What is wanted.
        may_drop: Whether another call may be made without the one refused.

    Raises:
        InvalidInputError: The error is about something else, or it is one document too many.
    """
    if error.place.name in (Tensor.QUERY, "query"):
        raise error.at(Place("query"))
    if error.place.name == Parameter.TOKEN_LIMIT:
        raise error.at(Place("max_tokens_per_doc"))
    if error.place.name not in (Tensor.PASSAGES, Tensor.CANDIDATES, Tensor.TEXT, "ids") or not error.place.index:
        raise error
    refused = error.place.index[0]
    place = documents.places[refused]
    if task.strict or not task.truncate or not may_drop:
        raise error.at(Place(task.field, (place,)))
    return Documents(
        documents.usable[:refused] + documents.usable[refused + 1 :],
        documents.places[:refused] + documents.places[refused + 1 :],
        documents.cut,
        {**documents.unusable, place: error.problem},
    )
