"""OpenAI's embeddings and models."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from resrank.core.errors import InvalidInputError
from resrank.core.truncation import Side
from resrank.gateway.embedding import Embedded, EmbedTask, InputType
from resrank.gateway.schemas.common import Answer, CutSide, ForeignBody, InputKind, priority_of


def _texts(given: Any) -> Any:
    if isinstance(given, list) and given and all(isinstance(each, int | list) for each in given):
        raise ValueError(
            "must be texts: token ids belong to another model's tokenizer (LangChain's OpenAIEmbeddings sends "
            "texts with check_embedding_ctx_length=False)"
        )
    return given


class OpenAIEmbedding(ForeignBody):
    """A request to embed.

    Attributes:
        model: What serves it; this gateway's names.
        input: One text or several.
        encoding_format: Numbers, or base64 of them as little-endian FP32.
        dimensions: As many as the vectors have, or missing.
        input_type: ``query`` or ``document``, which the encoder reads differently.
        truncation_side: Which end of a text that is too long is cut off.
        priority: 0, or what is missing, is urgent; more is for documents that nobody waits for.
    """

    model: str | None = None
    input: Annotated[str | Annotated[list[str], Field(min_length=1)], BeforeValidator(_texts)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    input_type: InputKind = InputType.DOCUMENT
    truncation_side: CutSide = Side.RIGHT
    priority: int | None = None

    def task(self) -> EmbedTask:
        """What it asks for."""
        texts = (self.input,) if isinstance(self.input, str) else tuple(self.input)
        return EmbedTask(
            texts, self.input_type, "input", side=self.truncation_side, priority=priority_of(self.priority)
        )


class OpenAIVector(Answer):
    """One text's vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIUsage(Answer):
    """Tokens that the encoder read, its instruction and special ones among them."""

    prompt_tokens: int
    total_tokens: int


class OpenAIVectors(Answer):
    """Vectors in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[OpenAIVector]
    model: str
    usage: OpenAIUsage


def openai_vectors(embedded: Embedded, body: OpenAIEmbedding, model: str) -> OpenAIVectors:
    """An answer in this schema.

    Args:
        embedded: What came of it.
        body: What was asked for.
        model: The model's name.

    Raises:
        InvalidInputError: Vectors of another length are wanted.
    """
    vectors, tokens_read = embedded.vectors, embedded.tokens_read
    if body.dimensions is not None and body.dimensions != vectors.shape[1]:
        raise InvalidInputError("dimensions", "vectors have one length", limit=vectors.shape[1], value=body.dimensions)
    encoded: list[Any]
    if body.encoding_format == "base64":
        encoded = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    else:
        encoded = vectors.tolist()
    return OpenAIVectors(
        data=[OpenAIVector(index=index, embedding=each) for index, each in enumerate(encoded)],
        model=model,
        usage=OpenAIUsage(prompt_tokens=tokens_read, total_tokens=tokens_read),
    )


class OpenAIModel(Answer):
    """One model.

    Attributes:
        id: Its name.
        created: When, which nobody knows: 0.
        root: The checkpoint's encoder, by the digest that an index belongs to; missing where Triton does not answer.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "resrank"
    root: str | None = None


class OpenAIModels(Answer):
    """All names that ``model`` may have."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]
