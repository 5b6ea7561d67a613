"""Weaviate's ``reranker-transformers`` module: ``documents`` and ``property``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from resrank.gateway.reranking import Ranking, RerankTask
from resrank.gateway.schemas.common import Answer, RerankOptions


class WeaviateRerank(RerankOptions):
    """A request to rerank.

    Attributes:
        query: The query.
        documents: In retrieval order.
        property: Tells this schema from others; its value does not matter.
    """

    query: str
    documents: Annotated[list[str], Field(min_length=1)]
    property: str | None

    def task(self) -> RerankTask:
        """What it asks for."""
        return RerankTask(
            self.query, tuple(self.documents), strict=self.strict, min_score=self.min_score, on_failure=self.on_failure
        )


class WeaviateScore(Answer):
    """One document; there is no place, so that it is known by its text."""

    document: str
    score: float


class WeaviateAnswer(Answer):
    """Documents in the order of the request."""

    query: str
    scores: list[WeaviateScore]


def weaviate_answer(ranking: Ranking, body: WeaviateRerank) -> WeaviateAnswer:
    """An answer in this schema.

    Args:
        ranking: What was found.
        body: What was asked for.
    """
    ordered = sorted(ranking.documents, key=lambda document: document.index)
    return WeaviateAnswer(
        query=body.query,
        scores=[WeaviateScore(document=body.documents[each.index], score=each.relevance) for each in ordered],
    )
