"""``rerank_text``: the texts of query and passages to scores, by calls to ``embed_passage`` and ``rerank``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError, Place
from resrank.core.limits import MAX_QUERY_BYTES, MAX_TEXT_PASSAGES
from resrank.core.names import Model, Tensor
from resrank.core.tokenization import decode_text, row_field
from resrank.serving.cache_metrics import CacheMetrics
from resrank.serving.embedding_cache import EmbeddingCache
from resrank.serving.infer import Infer
from resrank.serving.passage_encoding import Chunk, Encoded, PassageEncoder, PassageError
from resrank.serving.rerank_chain import InferOutputs
from resrank.serving.step import Arrays, StepRequest


class TextRerankingStep:
    """QUERY BYTES [B, 1] and PASSAGES BYTES [B, N] to SCORES FP32 and TOKENS_CUT INT32 [B, N], TOKENS_READ [B, 1]."""

    def __init__(
        self,
        infer: Infer,
        cache: EmbeddingCache,
        metrics: CacheMetrics,
        *,
        embed_batch_size: int,
        max_passages: int,
        infer_outputs: InferOutputs | None = None,
    ) -> None:
        """Prepares the calls.

        Args:
            infer: Calls another model.
            cache: Keeps the passages' vectors.
            metrics: Told what was found in it.
            embed_batch_size: Passages in one call to ``embed_passage``.
            max_passages: Candidates that ``rerank`` takes in one pass.
            infer_outputs: Calls another model for several outputs; None where ``embed_passage`` does not tell what it
                cut off, in repositories of earlier versions.
        """
        self._infer = infer
        self._infer_outputs = infer_outputs
        self._cache = cache
        self._metrics = metrics
        self._encoder = PassageEncoder(cache, embed_batch_size)
        self._max_passages = min(max_passages, MAX_TEXT_PASSAGES)

    async def answer(self, request: StepRequest) -> Arrays:
        """Scores one request (see :class:`resrank.serving.deferred.RequestStep`).

        Raises:
            InvalidInputError: The query or a passage breaks a rule, or there are none or too many.
            QueueFullError: A queue was full, or the caller's time is over.
            DeadlineExceededError: The caller's time is over.
        """
        queries, passages = request.inputs[Tensor.QUERY], request.inputs[Tensor.PASSAGES]
        rows, count = passages.shape
        if count == 0:
            raise InvalidInputError(Tensor.PASSAGES, "no passages", limit="at least 1", value=0)
        if count > self._max_passages:
            raise InvalidInputError(
                Tensor.PASSAGES, "too many passages in one pass", limit=self._max_passages, value=count
            )
        for row, query in enumerate(queries[:, 0]):  # before the passages are paid for
            decode_text(query, row_field(Tensor.QUERY, row, rows), max_bytes=MAX_QUERY_BYTES)
        encoded = await self._encode(passages.ravel().tolist(), passages.shape, request)
        inputs = {Tensor.QUERY: queries, Tensor.CANDIDATES: encoded.vectors.reshape(rows, count, -1)}
        told: dict[Tensor, NDArray[Any]] = {Tensor.TOKENS_CUT: encoded.tokens_cut.reshape(rows, count)}
        if self._infer_outputs is None or Tensor.TOKENS_READ not in request.wanted:
            return told | {Tensor.SCORES: await self._infer(Model.RERANK, inputs, Tensor.SCORES, request)}
        ranked = await self._infer_outputs(Model.RERANK, inputs, (Tensor.SCORES, Tensor.TOKENS_READ), request)
        of_passages = encoded.tokens_read.reshape(rows, count).sum(axis=1, keepdims=True, dtype=np.int32)
        told[Tensor.SCORES] = ranked[Tensor.SCORES]
        return told | {Tensor.TOKENS_READ: ranked[Tensor.TOKENS_READ] + of_passages}

    async def _encode(self, passages: Sequence[bytes], shape: tuple[int, ...], request: StepRequest) -> Encoded:
        """Vectors of B * N texts."""
        counts = (Tensor.TOKENS_CUT, *((Tensor.TOKENS_READ,) if Tensor.TOKENS_READ in request.wanted else ()))

        async def embed(texts: Sequence[bytes]) -> Chunk:
            inputs = {Tensor.TEXT: np.array(texts, dtype=np.object_)[:, np.newaxis]}
            untold = np.zeros((len(texts), 1), np.int32)
            if self._infer_outputs is None:
                embeddings = await self._infer(Model.EMBED_PASSAGE, inputs, Tensor.EMBEDDING, request)
                return Chunk(embeddings, untold[:, 0], untold[:, 0])
            outputs = await self._infer_outputs(Model.EMBED_PASSAGE, inputs, (Tensor.EMBEDDING, *counts), request)
            read = outputs.get(Tensor.TOKENS_READ, untold)
            return Chunk(outputs[Tensor.EMBEDDING], outputs[Tensor.TOKENS_CUT][:, 0], read[:, 0])

        try:
            encoded = await self._encoder.encode(passages, embed, truncate=request.truncate, deadline=request.deadline)
        except PassageError as failed:
            raise _named_as_passage(failed, shape) from failed
        self._metrics.record(found=encoded.found, encoded=encoded.encoded, bytes_used=self._cache.bytes_used)
        return encoded


def _named_as_passage(failed: PassageError, shape: tuple[int, ...]) -> Exception:
    """Says which of PASSAGES an error is about, where it is about one of them."""
    error = failed.error
    if not isinstance(error, InvalidInputError) or error.place.name != Tensor.TEXT:
        return error
    row, index = divmod(failed.position, shape[1])
    return error.at(Place(Tensor.PASSAGES, (index,) if shape[0] == 1 else (row, index)))
