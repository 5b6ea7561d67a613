"""Cohere v1 and v2, Jina, vLLM: ``documents``, or of this project ``document_ids``."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from resrank.core.fusion import MAX_LEXICAL_WEIGHT
from resrank.core.truncation import Side
from resrank.gateway.reranking import RankedDocument, Ranking, RerankTask
from resrank.gateway.schemas.common import (
    Answer,
    CutSide,
    Document,
    DocumentText,
    RerankOptions,
    Timings,
    priority_of,
    text_of,
)


class CohereRerank(RerankOptions):
    """A request to rerank.

    Attributes:
        model: What serves it; this gateway's names.
        query: The query.
        documents: Texts, in retrieval order.
        document_ids: Instead of them, ids of passages in the index, in retrieval order.
        collection: With ``document_ids``, whose passages, by name or alias; the default one's where it is missing.
        top_n: Documents to return; all where it is missing or 0 (vLLM's default).
        return_documents: Whether the answer has their texts.
        max_tokens_per_doc: Tokens of a document that are read (Cohere); fewer than the model reads.
        truncate_prompt_tokens: The same (vLLM); -1 for as many as the model reads.
        truncation_side: Which end of a text that is too long is cut off.
        priority: 0, or what is missing, is urgent; more is less (Cohere, vLLM).
        lexical_weight: With ``document_ids``, w of BM25; the checkpoint's where it is missing.
    """

    model: str | None = None
    query: str
    documents: Annotated[list[Document], Field(min_length=1)] | None = None
    document_ids: Annotated[list[str], Field(min_length=1)] | None = None
    collection: str | None = None
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: CutSide = Side.RIGHT
    priority: int | None = None
    lexical_weight: Annotated[float, Field(ge=0, le=MAX_LEXICAL_WEIGHT)] | None = None

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        if (self.documents is None) == (self.document_ids is None):
            raise ValueError("give either documents (texts) or document_ids (of the index), one of them")
        if self.lexical_weight is not None and self.document_ids is None:
            raise ValueError("lexical_weight is of document_ids, whose BM25 the index knows")
        if self.collection and self.document_ids is None:
            raise ValueError("collection: is of document_ids, which are in the index; documents are in none")
        return self

    @property
    def _token_limit(self) -> int | None:
        given = (self.max_tokens_per_doc, self.truncate_prompt_tokens)
        return min((limit for limit in given if limit is not None and limit > 0), default=None)

    def task(self, *, include_texts: bool) -> RerankTask:
        """What it asks for.

        Args:
            include_texts: Whether texts are sent back where it does not say.
        """
        stored = self.document_ids is not None
        documents = self.document_ids if self.document_ids is not None else map(text_of, self.documents or ())
        return RerankTask(
            self.query,
            tuple(documents),
            stored=stored,
            field="document_ids" if stored else "documents",
            top_n=self.top_n or None,
            min_score=self.min_score,
            side=self.truncation_side,
            token_limit=self._token_limit,
            strict=self.strict,
            lexical_weight=self.lexical_weight,
            collection=self.collection or "",
            include_texts=include_texts if self.return_documents is None else self.return_documents,
            on_failure=self.on_failure,
            priority=priority_of(self.priority),
        )


class CohereResult(Answer):
    """One document.

    Attributes:
        index: Its place in the request.
        relevance_score: 0 to 1, see ``meta.calibration``.
        score: What the order is by, on the reranker's own scale; missing where it was not reranked.
        document: Its text.
        id: Of a stored passage.
    """

    index: int
    relevance_score: float
    score: float | None = None
    document: DocumentText | None = None
    id: str | None = None


class UnusableDocument(Answer):
    """A document that could not be ranked, and why."""

    index: int
    problem: str


class ApiVersion(Answer):
    """Cohere's."""

    version: str


class BilledUnits(Answer):
    """Cohere's."""

    search_units: int = 1


class CohereMeta(Answer):
    """What an answer says beside the order.

    Attributes:
        api_version: Which of Cohere's the path is.
        billed_units: One search.
        warnings: Sentences on documents that were cut, or could not be ranked.
        reranked: Whether the reranker ordered the documents.
        reason: Why not: ``shed`` (a queue was full), ``deadline``, ``unavailable`` or ``failed``.
        calibration: How scores became relevance.
        truncated: Places of documents that were read only in part.
        unusable: Documents that could not be ranked; they stand last.
        timings: Milliseconds of each stage.
    """

    api_version: ApiVersion
    billed_units: BilledUnits = BilledUnits()
    warnings: list[str] | None = None
    reranked: bool
    reason: str | None = None
    calibration: str
    truncated: tuple[int, ...] = ()
    unusable: tuple[UnusableDocument, ...] = ()
    timings: Timings


class CohereUsage(Answer):
    """vLLM's and Jina's.

    Attributes:
        total_tokens: Tokens of the query, and of those documents whose vectors were not known, that the models read.
    """

    total_tokens: int


class CohereAnswer(Answer):
    """Documents, best first."""

    id: str
    model: str
    results: list[CohereResult]
    usage: CohereUsage
    meta: CohereMeta


def cohere_answer(ranking: Ranking, task: RerankTask, *, request_id: str, model: str, version: str) -> CohereAnswer:
    """An answer in this schema.

    Args:
        ranking: What was found.
        task: What was asked for.
        request_id: Of the request.
        model: Its name.
        version: Of Cohere's API.
    """
    unusable = [UnusableDocument(index=index, problem=problem) for index, problem in sorted(ranking.unusable.items())]
    return CohereAnswer(
        id=request_id,
        model=model,
        results=[_result(document, include_text=task.include_texts) for document in ranking.documents],
        usage=CohereUsage(total_tokens=ranking.tokens_read),
        meta=CohereMeta(
            api_version=ApiVersion(version=version),
            warnings=_warnings(ranking, task) or None,
            reranked=ranking.reranked,
            reason=ranking.reason,
            calibration=ranking.calibration,
            truncated=ranking.truncated,
            unusable=tuple(unusable),
            timings=dict(ranking.timings),
        ),
    )


def _result(document: RankedDocument, *, include_text: bool) -> CohereResult:
    passage = document.passage
    return CohereResult(
        index=document.index,
        relevance_score=document.relevance,
        score=None if passage is None or passage.rerank_score is None else passage.score,
        document=DocumentText(text=document.text) if include_text and document.text is not None else None,
        id=None if passage is None else passage.id,
    )


def _warnings(ranking: Ranking, task: RerankTask) -> list[str]:
    warnings = [f"{task.field}[{index}]: {problem}; ranked last" for index, problem in sorted(ranking.unusable.items())]
    if ranking.truncated:
        places = ", ".join(map(str, ranking.truncated))
        warnings.append(f"{task.field}: longer than the model reads, and cut: {places}")
    if not ranking.reranked:
        warnings.append(f"not reranked ({ranking.reason}): the documents stand in the order given")
    found = [document for document in ranking.documents if document.passage is not None]
    if task.stored and task.include_texts and any(document.text is None for document in found):
        warnings.append("documents: the index did not answer, so that there are no texts")
    return warnings
