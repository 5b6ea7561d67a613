"""The vectors of a request's passages: from the cache, from another request that encodes them, or from the encoder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from resrank.core.blocks import plan_blocks
from resrank.core.errors import DeadlineExceededError, InvalidInputError
from resrank.core.names import Tensor
from resrank.serving.embedding_cache import EmbeddingCache, Vector


class EncodePassages(Protocol):
    """Has texts encoded."""

    async def __call__(self, texts: Sequence[bytes]) -> NDArray[np.float32]:
        """FP32 [n, d] of n texts in UTF-8, no more than one request to ``embed_passage`` takes.

        Raises:
            ResRankError: Nothing was computed. An invalid text is named ``TEXT[j]``.
        """
        ...


@dataclass(frozen=True)
class Encoded:
    """What became of a request's passages.

    Attributes:
        vectors: FP16 [n, d].
        found: How many of the n this request did not have encoded: they were known, or somebody was encoding them, or
            they stand in the request twice.
        encoded: How many it had encoded.
    """

    vectors: NDArray[np.float16]
    found: int
    encoded: int


class PassageError(Exception):
    """A passage could not be encoded.

    Attributes:
        position: Which of the request's, from 0.
        error: Why; a row of ``TEXT`` is still named as the encoder named it.
    """

    def __init__(self, position: int, error: Exception) -> None:
        self.position = position
        self.error = error
        super().__init__(str(error))


class PassageEncoder:
    """Encodes each passage once, whoever asks for it at the same time or later.

    One who finds a passage being encoded waits for it; when that fails, for whatever reason of the other request's, it
    has the passage encoded itself. All requests are of one event loop, so nothing here is locked.

    Args:
        cache: Where vectors are kept.
        chunk: Passages in one request to the encoder.
    """

    def __init__(self, cache: EmbeddingCache, chunk: int) -> None:
        self._cache = cache
        self._chunk = chunk
        self._under_way: dict[bytes, asyncio.Future[Vector | None]] = {}

    async def encode(
        self, texts: Sequence[bytes], encode: EncodePassages, *, truncate: bool, deadline: float | None
    ) -> Encoded:
        """Finds or makes the vectors of a request's passages.

        Args:
            texts: UTF-8, at least one.
            encode: Has texts encoded on behalf of this request.
            truncate: Whether they may be cut.
            deadline: When the caller stops waiting, on the clock of :func:`time.monotonic`; None for never.

        Raises:
            PassageError: The first passage in the list that could not be encoded, and why.
            DeadlineExceededError: The time was over while somebody else encoded a passage.
        """
        keys = [self._cache.key(text, truncate=truncate) for text in texts]
        first: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            first.setdefault(key, position)
        vectors: dict[bytes, Vector] = {}
        failure: PassageError | None = None
        encoded = 0
        missing = list(first)
        while missing:
            mine, others = self._claim(missing, vectors)
            encoded += len(mine)
            for place, error in await self._encode(mine, [texts[first[key]] for key in mine], encode, vectors):
                position = first[mine[place]]
                if failure is None or position < failure.position:
                    failure = PassageError(position, error)
            if failure is not None:  # what stands behind it does not matter any more
                others = {key: future for key, future in others.items() if first[key] < failure.position}
            await self._wait_for(others, vectors, deadline)
            missing = [key for key in others if key not in vectors]  # what the other one failed to encode
        if failure is not None:
            raise failure
        return Encoded(np.stack([vectors[key] for key in keys]), len(keys) - encoded, encoded)

    def _claim(
        self, keys: Sequence[bytes], vectors: dict[bytes, Vector]
    ) -> tuple[list[bytes], dict[bytes, asyncio.Future[Vector | None]]]:
        """Takes what is known; of the rest, what this request is to encode and what others do. Never awaits."""
        mine: list[bytes] = []
        others: dict[bytes, asyncio.Future[Vector | None]] = {}
        for key in keys:
            vector = self._cache.get(key)
            if vector is not None:
                vectors[key] = vector
            elif key in self._under_way:
                others[key] = self._under_way[key]
            else:
                self._under_way[key] = asyncio.get_running_loop().create_future()
                mine.append(key)
        return mine, others

    async def _encode(
        self, keys: Sequence[bytes], texts: Sequence[bytes], encode: EncodePassages, vectors: dict[bytes, Vector]
    ) -> list[tuple[int, Exception]]:
        """Encodes in chunks at the same time, each made known as it comes; the place and error of what failed."""

        async def one_chunk(block: slice) -> None:
            chunk = keys[block]
            try:
                rows = await encode(texts[block])
                with np.errstate(over="ignore"):  # `rerank` refuses an infinity and says where it is
                    for key, row in zip(chunk, rows.astype(np.float16), strict=True):
                        vectors[key] = row
                        self._cache.put(key, row)
            finally:
                for key in chunk:
                    self._under_way.pop(key).set_result(vectors.get(key))

        blocks = plan_blocks(len(keys), self._chunk)
        outcomes = await asyncio.gather(*map(one_chunk, blocks), return_exceptions=True)
        failures: list[tuple[int, Exception]] = []
        for block, outcome in zip(blocks, outcomes, strict=True):
            if isinstance(outcome, Exception):
                failures.append((block.start + _row(outcome), outcome))
            elif outcome is not None:
                raise outcome  # cancellation or exit of the process: nobody's result
        return failures

    async def _wait_for(
        self,
        others: dict[bytes, asyncio.Future[Vector | None]],
        vectors: dict[bytes, Vector],
        deadline: float | None,
    ) -> None:
        if not others:
            return
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        _, pending = await asyncio.wait(others.values(), timeout=left)
        if pending:
            raise DeadlineExceededError("while another request encoded a passage of this one")
        for key, future in others.items():
            vector = future.result()
            if vector is not None:
                vectors[key] = vector


def _row(error: Exception) -> int:
    """Which of a chunk's texts an error is about; its first when it is about none or all."""
    if isinstance(error, InvalidInputError) and error.place.name == Tensor.TEXT and error.place.index:
        return error.place.index[0]
    return 0
