"""NVIDIA's NIM for reranking: ``passages``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from resrank.core.truncation import Side
from resrank.gateway.relevance import logit
from resrank.gateway.reranking import Ranking, RerankTask
from resrank.gateway.schemas.common import Answer, DocumentText, RerankOptions


class NimTruncate(StrEnum):
    """What of texts that are too long goes."""

    NONE = "NONE"
    START = "START"
    END = "END"


class NimRanking(RerankOptions):
    """A request to rerank.

    Attributes:
        model: What serves it; this gateway's names.
        query: The query.
        passages: In retrieval order.
        truncate: Which end of texts that are too long is cut off; ``NONE`` refuses them.
    """

    model: str | None = None
    query: DocumentText
    passages: Annotated[list[DocumentText], Field(min_length=1)]
    truncate: NimTruncate = NimTruncate.END

    def task(self) -> RerankTask:
        """What it asks for."""
        return RerankTask(
            self.query.text,
            tuple(passage.text for passage in self.passages),
            field="passages",
            min_score=self.min_score,
            truncate=self.truncate is not NimTruncate.NONE,
            side=Side.LEFT if self.truncate is NimTruncate.START else Side.RIGHT,
            strict=self.strict,
            on_failure=self.on_failure,
        )


class NimRank(Answer):
    """One passage.

    Attributes:
        index: Its place in the request.
        logit: Its sigmoid is the relevance.
    """

    index: int
    logit: float


class NimAnswer(Answer):
    """Passages, best first."""

    rankings: list[NimRank]


def nim_answer(ranking: Ranking) -> NimAnswer:
    """An answer in this schema.

    Args:
        ranking: What was found.
    """
    return NimAnswer(
        rankings=[NimRank(index=document.index, logit=logit(document.relevance)) for document in ranking.documents]
    )
