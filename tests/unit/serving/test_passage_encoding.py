"""A passage is encoded once, whoever asks for it, and nobody pays for another one's failure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import pytest

from resrank.core.errors import DeadlineExceededError, InvalidInputError, Place, QueueFullError
from resrank.serving.embedding_cache import EmbeddingCache
from resrank.serving.passage_encoding import CHUNKS_IN_FLIGHT, Chunk, Encoded, PassageEncoder, PassageError


class Encoder:
    """A text's vector is its number and 1. Calls wait until they are let go, and fail as told."""

    def __init__(self, failure: Exception | None = None, *, held: bool = False) -> None:
        self.failure = failure
        self.go = asyncio.Event()
        self.calls: list[list[bytes]] = []
        if not held:
            self.go.set()

    async def __call__(self, texts: Sequence[bytes]) -> Chunk:
        self.calls.append(list(texts))
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        for row, text in enumerate(texts):
            if text == b"bad":
                raise InvalidInputError(Place("TEXT", () if len(texts) == 1 else (row,)), "empty")
        vectors = np.array([[float(text), 1.0] for text in texts], np.float32)
        return Chunk(vectors, np.array([len(text) - 1 for text in texts], np.int32), np.full(len(texts), 7, np.int32))


def passages(*numbers: int) -> list[bytes]:
    return [str(number).encode() for number in numbers]


def encoder_of(max_bytes: int = 1_000_000) -> PassageEncoder:
    return PassageEncoder(EmbeddingCache("e" * 64, max_bytes), chunk=3)


async def encode(
    encoder: PassageEncoder,
    texts: Sequence[bytes],
    by: Encoder,
    *,
    truncate: bool = False,
    within_s: float | None = None,
) -> Encoded:
    deadline = None if within_s is None else time.monotonic() + within_s
    return await encoder.encode(texts, by, truncate=truncate, deadline=deadline)


async def test_known_passages_and_repeated_ones_are_not_encoded_again() -> None:
    encoder, by = encoder_of(), Encoder()
    first = await encode(encoder, passages(1, 2, 1, 3, 4), by)
    assert by.calls == [passages(1, 2, 3), passages(4)]
    assert (first.found, first.encoded) == (1, 4)
    second = await encode(encoder, passages(4, 5, 1), by)
    assert by.calls[2:] == [passages(5)]
    assert (second.found, second.encoded) == (2, 1)
    assert (first.tokens_read.tolist(), second.tokens_read.tolist()) == ([7, 7, 0, 7, 7], [0, 7, 0])
    np.testing.assert_array_equal(first.vectors, np.array([[1, 1], [2, 1], [1, 1], [3, 1], [4, 1]], np.float16))
    np.testing.assert_array_equal(second.vectors, np.array([[4, 1], [5, 1], [1, 1]], np.float16))


async def test_what_was_cut_off_is_told_of_known_passages_too() -> None:
    encoder, by = encoder_of(), Encoder()
    for _ in range(2):
        found = await encode(encoder, passages(123, 4, 56), by, truncate=True)
        assert found.tokens_cut.tolist() == [2, 0, 1]
    assert len(by.calls) == 1


@pytest.mark.parametrize("max_bytes", [1_000_000, 0])
async def test_requests_at_the_same_time_encode_a_passage_once(max_bytes: int) -> None:
    """Also without memory: what is being encoded need not be kept to be shared."""
    encoder, by = encoder_of(max_bytes), Encoder(held=True)
    asked = [asyncio.create_task(encode(encoder, passages(1, 2), by)) for _ in range(5)]
    await asyncio.sleep(0)
    by.go.set()
    answers = await asyncio.gather(*asked)
    assert by.calls == [passages(1, 2)]
    assert sorted(answer.encoded for answer in answers) == [0, 0, 0, 0, 2]
    for answer in answers:
        np.testing.assert_array_equal(answer.vectors, np.array([[1, 1], [2, 1]], np.float16))


@pytest.mark.parametrize("failure", [QueueFullError("Request timeout expired"), InvalidInputError("TEXT", "too long")])
async def test_who_waited_for_a_request_that_failed_has_the_passage_encoded_itself(failure: Exception) -> None:
    encoder, failing, working = encoder_of(), Encoder(failure, held=True), Encoder()
    first = asyncio.create_task(encode(encoder, passages(1), failing))
    await asyncio.sleep(0)
    others = [asyncio.create_task(encode(encoder, passages(1, 2), working)) for _ in range(3)]
    await asyncio.sleep(0)
    failing.go.set()
    for answer in await asyncio.gather(*others):
        np.testing.assert_array_equal(answer.vectors, np.array([[1, 1], [2, 1]], np.float16))
    with pytest.raises(PassageError) as caught:
        await first
    assert caught.value.error is failure
    assert sorted(map(len, working.calls)) == [1, 1], "one of the three encoded it for all three"


async def test_a_cancelled_request_leaves_nobody_waiting() -> None:
    encoder, held, working = encoder_of(), Encoder(held=True), Encoder()
    first = asyncio.create_task(encode(encoder, passages(1), held))
    await asyncio.sleep(0)
    second = asyncio.create_task(encode(encoder, passages(1), working))
    await asyncio.sleep(0)
    first.cancel()
    np.testing.assert_array_equal((await second).vectors, np.array([[1, 1]], np.float16))


async def test_who_waits_is_told_when_its_own_time_is_over() -> None:
    encoder, held = encoder_of(), Encoder(held=True)
    first = asyncio.create_task(encode(encoder, passages(1), held))
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceededError):
        await encode(encoder, passages(1), held, within_s=0.01)
    held.go.set()
    assert (await first).encoded == 1


async def test_the_first_bad_passage_is_named_and_nothing_bad_is_kept() -> None:
    encoder, by = encoder_of(), Encoder()
    for _ in range(2):
        with pytest.raises(PassageError) as caught:
            await encode(encoder, [*passages(1, 2), b"bad", *passages(3), b"bad"], by)
        assert caught.value.position == 2
    assert by.calls == [[*passages(1, 2), b"bad"], passages(3), [*passages(1, 2), b"bad"]]
    assert (await encode(encoder, passages(3), by)).encoded == 0, "what was good is kept"


async def test_a_bad_passage_of_another_request_is_named_where_it_stands_first() -> None:
    encoder, held, by = encoder_of(), Encoder(held=True), Encoder()
    other = asyncio.create_task(encode(encoder, [b"bad"], held))
    await asyncio.sleep(0)
    mine = asyncio.create_task(encode(encoder, [*passages(1), b"bad", *passages(2)], by))
    await asyncio.sleep(0)
    held.go.set()
    with pytest.raises(PassageError) as caught:
        await mine
    assert caught.value.position == 1
    with pytest.raises(PassageError):
        await other


async def test_all_requests_together_have_a_few_chunks_under_way() -> None:
    encoder, by = encoder_of(), Encoder(held=True)
    requests = [asyncio.create_task(encode(encoder, passages(*range(100 * n, 100 * n + 30)), by)) for n in range(3)]
    await asyncio.sleep(0.05)
    assert len(by.calls) == CHUNKS_IN_FLIGHT
    by.go.set()
    found = await asyncio.gather(*requests)
    assert [one.vectors[:, 0].tolist() for one in found] == [list(range(100 * n, 100 * n + 30)) for n in range(3)]
    assert len(by.calls) == 30
