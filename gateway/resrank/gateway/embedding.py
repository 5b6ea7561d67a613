"""Embedding for every schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from resrank.client import AsyncResRankClient
from resrank.client.triton_calls import Float32
from resrank.core.documents import fit_query, sort_texts
from resrank.core.errors import InvalidInputError, Place
from resrank.core.names import Priority
from resrank.core.truncation import Side, Truncation


class InputType(StrEnum):
    """What texts are to the encoder, which reads the two differently."""

    QUERY = "query"
    DOCUMENT = "document"


@dataclass(frozen=True)
class EmbedTask:
    """What a request asks for, whatever its schema.

    Attributes:
        texts: At least one.
        kind: Queries or documents.
        field: What the schema calls the list, for errors.
        truncate: Whether texts that are too long are cut.
        side: Where.
        priority: How urgent it is.
    """

    texts: tuple[str, ...]
    kind: InputType
    field: str
    truncate: bool = True
    side: Side = Side.RIGHT
    priority: Priority = Priority.INTERACTIVE


@dataclass(frozen=True)
class Embedded:
    """What came of it.

    Attributes:
        vectors: FP32 [n, d] of n texts.
        tokens_read: Tokens of all of them that the encoder read.
    """

    vectors: Float32
    tokens_read: int


class Embedder:
    """Embeds through the client library.

    Args:
        client: Speaks to Triton.
        most: Texts in one request.
    """

    def __init__(self, client: AsyncResRankClient, most: int) -> None:
        self._client = client
        self._most = most

    async def embed(self, task: EmbedTask) -> Embedded:
        """Embeds a request's texts.

        Args:
            task: What is wanted.

        Raises:
            InvalidInputError: A text breaks a rule, or there are too many.
            ResRankError: What the client raises.
        """
        if len(task.texts) > self._most:
            raise InvalidInputError(task.field, "too many in one request", limit=self._most, value=len(task.texts))
        truncate = Truncation(task.side) if task.truncate else False
        read: list[int] = []
        try:
            if task.kind is InputType.QUERY:
                vectors = await self._client.embed_queries(self._queries(task), truncate=truncate, tokens_read=read)
            else:
                documents = sort_texts(
                    task.texts, truncate=task.truncate, side=task.side, strict=True, field=task.field
                )
                vectors = await self._client.embed_passages(
                    documents.usable, truncate=truncate, bulk=task.priority is Priority.BULK, tokens_read=read
                )
        except InvalidInputError as error:
            raise error.at(Place(task.field, error.place.index)) from None
        return Embedded(vectors, sum(read))

    def _queries(self, task: EmbedTask) -> Sequence[str]:
        return [
            fit_query(text, truncate=task.truncate, side=task.side, field=Place(task.field, (index,)))
            for index, text in enumerate(task.texts)
        ]
