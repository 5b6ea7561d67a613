"""``rerank_text``: the texts of query and passages to scores, by calls to ``embed_passage`` and ``rerank``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from resrank.errors import InvalidInputError
from resrank.limits import MAX_QUERY_BYTES, MAX_TEXT_PASSAGES
from resrank.names import Model, Tensor
from resrank.serving.step import Arrays, Outcome, StepRequest
from resrank.tokenization import decode_text, row_field

_TEXT_ROW = re.compile(rf"{Tensor.TEXT}(?:\[(\d+)\])?")


class Infer(Protocol):
    """Calls another model; see :meth:`resrank.serving.python_backend.PythonBackend.infer`."""

    async def __call__(self, model: Model, inputs: Arrays, output: Tensor, caller: StepRequest) -> NDArray[Any]:
        """Returns the one wanted output."""
        ...


class TextRerankingStep:
    """QUERY BYTES [B, 1] and PASSAGES BYTES [B, N] to SCORES FP32 [B, N]."""

    def __init__(self, infer: Infer, *, embed_batch_size: int, max_passages: int) -> None:
        """Prepares the calls.

        Args:
            infer: Calls another model.
            embed_batch_size: Passages in one call to ``embed_passage``.
            max_passages: Candidates that ``rerank`` takes in one pass.
        """
        self._infer = infer
        self._embed_batch_size = embed_batch_size
        self._max_passages = min(max_passages, MAX_TEXT_PASSAGES)

    async def run(self, requests: Sequence[StepRequest]) -> list[Outcome]:
        """Computes all requests of the batch at the same time (see the protocol)."""
        outcomes = await asyncio.gather(*map(self._rerank, requests), return_exceptions=True)
        return [_no_exit(outcome) for outcome in outcomes]

    async def _rerank(self, request: StepRequest) -> Arrays:
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
        embeddings = await self._embed(passages.reshape(-1, 1), request)
        with np.errstate(over="ignore"):  # `rerank` refuses an infinity and says where it is
            candidates = embeddings.reshape(rows, count, -1).astype(np.float16)
        inputs = {Tensor.QUERY: queries, Tensor.CANDIDATES: candidates}
        return {Tensor.SCORES: await self._infer(Model.RERANK, inputs, Tensor.SCORES, request)}

    async def _embed(self, texts: NDArray[np.object_], request: StepRequest) -> NDArray[np.float32]:
        """BYTES [B * N, 1] to FP32 [B * N, d]."""
        starts = range(0, len(texts), self._embed_batch_size)
        chunks = await asyncio.gather(
            *(
                self._infer(
                    Model.EMBED_PASSAGE,
                    {Tensor.TEXT: texts[start : start + self._embed_batch_size]},
                    Tensor.EMBEDDING,
                    request,
                )
                for start in starts
            ),
            return_exceptions=True,
        )
        embeddings: list[NDArray[np.float32]] = []
        for start, chunk in zip(starts, chunks, strict=True):  # in order, so that the first bad passage is named
            if isinstance(chunk, InvalidInputError):
                raise _named_as_passage(chunk, start, request.inputs[Tensor.PASSAGES].shape)
            if isinstance(chunk, BaseException):
                raise chunk
            embeddings.append(chunk)
        return np.concatenate(embeddings)


def _named_as_passage(error: InvalidInputError, start: int, shape: tuple[int, ...]) -> InvalidInputError:
    """Says of a chunk's ``TEXT[j]`` which of PASSAGES it is."""
    match = _TEXT_ROW.fullmatch(error.field)
    if match is None:
        return error
    row, index = divmod(start + int(match[1] or 0), shape[1])
    name = f"{Tensor.PASSAGES}[{index}]" if shape[0] == 1 else f"{Tensor.PASSAGES}[{row}][{index}]"
    return InvalidInputError(name, error.problem, limit=error.limit, value=error.value)


def _no_exit(outcome: Arrays | BaseException) -> Outcome:
    if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
        raise outcome  # cancellation or exit of the process: nobody's result
    return outcome
