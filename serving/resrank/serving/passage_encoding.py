"""The vectors of a request's passages: from the cache, from another request that encodes them, or from the encoder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from resrank.core.blocks import plan_blocks
from resrank.core.errors import DeadlineExceededError, InvalidInputError
from resrank.core.names import Tensor
from resrank.core.truncation import Truncation
from resrank.serving.embedding_cache import EmbeddingCache, Kept

CHUNKS_IN_FLIGHT = 4
"""Of all requests together: the encoder's queue has few more places, which others want too."""


class Chunk(NamedTuple):
    """What the encoder makes of n texts.

    Attributes:
        vectors: FP32 [n, d].
        tokens_cut: INT32 [n], tokens of each that are not in its vector.
        tokens_read: INT32 [n], tokens of each that are.
    """

    vectors: NDArray[np.float32]
    tokens_cut: NDArray[np.int32]
    tokens_read: NDArray[np.int32]


class EncodePassages(Protocol):
    """Has texts encoded."""

    async def __call__(self, texts: Sequence[bytes]) -> Chunk:
        """Encodes texts in UTF-8, no more than one call to ``embed_passage`` takes.

        Raises:
            ResRankError: Nothing was computed. An invalid text is named ``TEXT[j]``.
        """
        ...


@dataclass(frozen=True)
class Encoded:
    """What became of a request's passages.

    Attributes:
        vectors: FP16 [n, d].
        tokens_cut: INT32 [n], tokens of each that its vector was made without.
        tokens_read: INT32 [n], tokens of each that were read for this request; 0 of those that it found.
        found: How many of the n this request did not have encoded: they were known, or somebody was encoding them, or
            they stand in the request twice.
        encoded: How many it had encoded.
    """

    vectors: NDArray[np.float16]
    tokens_cut: NDArray[np.int32]
    tokens_read: NDArray[np.int32]
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
        self._places = asyncio.Semaphore(CHUNKS_IN_FLIGHT)
        self._under_way: dict[bytes, asyncio.Future[Kept | None]] = {}

    async def encode(
        self,
        texts: Sequence[bytes],
        encode: EncodePassages,
        *,
        truncate: bool | Truncation | None,
        deadline: float | None,
    ) -> Encoded:
        """Finds or makes the vectors of a request's passages.

        Args:
            texts: UTF-8, at least one.
            encode: Has texts encoded on behalf of this request.
            truncate: Whether they may be cut, and how.
            deadline: When the caller stops waiting, on the clock of :func:`time.monotonic`; None for never.

        Raises:
            PassageError: The first passage in the list that could not be encoded, and why.
            DeadlineExceededError: The time was over while somebody else encoded a passage.
        """
        keys = [self._cache.key(text, truncate=truncate) for text in texts]
        first: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            first.setdefault(key, position)
        vectors: dict[bytes, Kept] = {}
        tokens_read = np.zeros(len(keys), np.int32)
        failure: PassageError | None = None
        encoded = 0
        missing = list(first)
        while missing:
            mine, others = self._claim(missing, vectors)
            encoded += len(mine)
            positions = np.array([first[key] for key in mine], np.int64)
            read, failures = await self._encode(mine, [texts[place] for place in positions], encode, vectors)
            tokens_read[positions] = read
            for place, error in failures:
                position = first[mine[place]]
                if failure is None or position < failure.position:
                    failure = PassageError(position, error)
            if failure is not None:  # what stands behind it does not matter any more
                others = {key: future for key, future in others.items() if first[key] < failure.position}
            await self._wait_for(others, vectors, deadline)
            missing = [key for key in others if key not in vectors]  # what the other one failed to encode
        if failure is not None:
            raise failure
        kept = [vectors[key] for key in keys]
        tokens_cut = np.array([each.tokens_cut for each in kept], np.int32)
        stacked = np.stack([each.vector for each in kept])
        return Encoded(stacked, tokens_cut, tokens_read, len(keys) - encoded, encoded)

    def _claim(
        self, keys: Sequence[bytes], vectors: dict[bytes, Kept]
    ) -> tuple[list[bytes], dict[bytes, asyncio.Future[Kept | None]]]:
        """Takes what is known; of the rest, what this request is to encode and what others do. Never awaits."""
        mine: list[bytes] = []
        others: dict[bytes, asyncio.Future[Kept | None]] = {}
        for key in keys:
            kept = self._cache.get(key)
            if kept is not None:
                vectors[key] = kept
            elif key in self._under_way:
                others[key] = self._under_way[key]
            else:
                self._under_way[key] = asyncio.get_running_loop().create_future()
                mine.append(key)
        return mine, others

    async def _encode(
        self, keys: Sequence[bytes], texts: Sequence[bytes], encode: EncodePassages, vectors: dict[bytes, Kept]
    ) -> tuple[NDArray[np.int32], list[tuple[int, Exception]]]:
        """Encodes in chunks at the same time, each made known as it comes.

        Returns:
            INT32 [n] tokens that were read of each; place and error of what failed.
        """
        tokens_read = np.zeros(len(keys), np.int32)

        async def one_chunk(block: slice) -> None:
            chunk = keys[block]
            try:
                async with self._places:
                    made = await encode(texts[block])
                tokens_read[block] = made.tokens_read
                with np.errstate(over="ignore"):  # `rerank` refuses an infinity and says where it is
                    rows = made.vectors.astype(np.float16)
                for key, row, cut in zip(chunk, rows, made.tokens_cut.tolist(), strict=True):
                    vectors[key] = Kept(row, cut)
                    self._cache.put(key, row, cut)
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
        return tokens_read, failures

    async def _wait_for(
        self,
        others: dict[bytes, asyncio.Future[Kept | None]],
        vectors: dict[bytes, Kept],
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
