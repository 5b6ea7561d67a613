"""Text Embeddings Inference: ``texts`` to rank, ``inputs`` to embed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from resrank.client.triton_calls import Float32
from resrank.core.scoring import normalize
from resrank.core.truncation import Side
from resrank.gateway.embedding import EmbedTask, InputType
from resrank.gateway.relevance import logit
from resrank.gateway.reranking import Ranking, RerankTask
from resrank.gateway.schemas.common import Answer, CutSide, ForeignBody, InputKind, RerankOptions


class TeiRerank(RerankOptions):
    """A request to rerank.

    Attributes:
        query: The query.
        texts: In retrieval order.
        raw_scores: Whether scores are logits, whose sigmoid is the relevance.
        return_text: Whether the answer has the texts.
        truncate: Whether texts that are too long are cut; here that is so unless it is said otherwise.
        truncation_direction: Which end is cut off.
    """

    query: str
    texts: Annotated[list[str], Field(min_length=1)]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None
    truncation_direction: CutSide = Side.RIGHT

    def task(self) -> RerankTask:
        """What it asks for."""
        return RerankTask(
            self.query,
            tuple(self.texts),
            field="texts",
            min_score=self.min_score,
            truncate=self.truncate is not False,
            side=self.truncation_direction,
            strict=self.strict,
            on_failure=self.on_failure,
        )


class TeiRank(Answer):
    """One text."""

    index: int
    score: float
    text: str | None = None


def tei_answer(ranking: Ranking, body: TeiRerank) -> list[TeiRank]:
    """An answer in this schema.

    Args:
        ranking: What was found.
        body: What was asked for.
    """
    return [
        TeiRank(
            index=document.index,
            score=logit(document.relevance) if body.raw_scores else document.relevance,
            text=document.text if body.return_text else None,
        )
        for document in ranking.documents
    ]


class TeiEmbed(ForeignBody):
    """A request to embed.

    Attributes:
        inputs: One text or several.
        normalize: Whether vectors have length 1.
        truncate: Whether texts that are too long are cut; here that is so unless it is said otherwise.
        truncation_direction: Which end is cut off.
        input_type: ``query`` or ``document``, which the encoder reads differently.
        prompt_name: The same, as sentence-transformers calls it.
    """

    inputs: str | Annotated[list[str], Field(min_length=1)]
    normalize: bool = True
    truncate: bool | None = None
    truncation_direction: CutSide = Side.RIGHT
    input_type: InputKind | None = None
    prompt_name: InputKind | None = None

    def task(self) -> EmbedTask:
        """What it asks for."""
        texts = (self.inputs,) if isinstance(self.inputs, str) else tuple(self.inputs)
        return EmbedTask(
            texts,
            self.input_type or self.prompt_name or InputType.DOCUMENT,
            "inputs",
            truncate=self.truncate is not False,
            side=self.truncation_direction,
        )


def tei_vectors(vectors: Float32, body: TeiEmbed) -> list[list[float]]:
    """An answer in this schema.

    Args:
        vectors: FP32 [n, d].
        body: What was asked for.
    """
    rows: list[list[float]] = (normalize(vectors) if body.normalize else vectors).tolist()
    return rows
