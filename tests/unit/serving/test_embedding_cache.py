"""Vectors come back as they were kept, and never take more memory than is allowed."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from resrank.core.truncation import Side, Truncation
from resrank.serving.embedding_cache import ENTRY_BYTES, EmbeddingCache

ENCODER = "e" * 64
DIM = 8


def vector(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(DIM).astype(np.float16)


def cache_of(entries: int) -> EmbeddingCache:
    return EmbeddingCache(ENCODER, entries * (2 * DIM + ENTRY_BYTES))


def test_a_vector_comes_back_bit_by_bit() -> None:
    cache = cache_of(4)
    key = cache.key(b"text", truncate=False)
    assert cache.get(key) is None
    cache.put(key, vector(0))
    np.testing.assert_array_equal(cache.get(key).vector.view(np.uint16), vector(0).view(np.uint16))
    assert cache.bytes_used == 2 * DIM + ENTRY_BYTES


def test_keys_tell_texts_encoders_and_the_leave_to_cut_apart() -> None:
    cache, other = cache_of(4), EmbeddingCache("f" * 64, 10_000)
    keys = {
        cache.key(b"text", truncate=False),
        cache.key(b"text", truncate=True),
        cache.key(b"text ", truncate=False),
        other.key(b"text", truncate=False),
        cache.key(b"text", truncate=Truncation(Side.LEFT)),
        cache.key(b"text", truncate=Truncation(token_limit=7)),
        cache.key(b"text", truncate=Truncation(Side.LEFT, 7)),
    }
    assert len(keys) == 7


def test_a_whole_passage_serves_no_caller_who_has_it_read_in_part() -> None:
    cache = cache_of(4)
    cache.put(cache.key(b"text", truncate=False), vector(0))
    assert cache.get(cache.key(b"text", truncate=Truncation(Side.LEFT))) is not None
    assert cache.get(cache.key(b"text", truncate=Truncation(token_limit=7))) is None
    cache.put(cache.key(b"other", truncate=True), vector(1), 12)
    kept = cache.get(cache.key(b"other", truncate=True))
    assert kept is not None
    assert kept.tokens_cut == 12


def test_what_was_encoded_whole_serves_those_who_would_have_had_it_cut_and_not_the_other_way_round() -> None:
    cache = cache_of(4)
    whole, cut = (cache.key(b"text", truncate=truncate) for truncate in (False, True))
    cache.put(cut, vector(0))
    assert cache.get(whole) is None
    cache.put(whole, vector(1))
    np.testing.assert_array_equal(cache.get(cut).vector, vector(0))
    other = cache_of(4)
    other.put(whole, vector(1))
    np.testing.assert_array_equal(other.get(cut).vector, vector(1))


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache = cache_of(3)
    keys = [cache.key(str(number).encode(), truncate=False) for number in range(5)]
    for number in range(3):
        cache.put(keys[number], vector(number))
    assert cache.get(keys[0]) is not None
    cache.put(keys[3], vector(3))
    assert [cache.get(key) is not None for key in keys] == [True, False, True, True, False]
    assert cache.bytes_used <= cache.max_bytes


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_what_rerank_would_refuse_is_not_kept(value: float) -> None:
    cache = cache_of(4)
    bad = vector(0) if value else np.zeros(DIM, np.float16)
    if value:
        bad[3] = value
    cache.put(cache.key(b"text", truncate=False), bad)
    assert len(cache) == 0


def test_without_memory_nothing_is_kept() -> None:
    cache = EmbeddingCache(ENCODER, 0)
    cache.put(cache.key(b"text", truncate=False), vector(0))
    assert (len(cache), cache.bytes_used) == (0, 0)


def test_the_bound_holds_for_the_memory_of_the_process() -> None:
    """Not only for the cache's own sum: the constant for what an entry costs beside its vector is no guess."""
    limit, dim = 4_000_000, 64
    cache = EmbeddingCache(ENCODER, limit)
    vectors = np.ones((1, dim), np.float16)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(2 * limit // (2 * dim + ENTRY_BYTES)):
            cache.put(cache.key(str(number).encode(), truncate=True), vectors[0])
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert cache.bytes_used > limit - dim - 2 * ENTRY_BYTES
    assert 0.5 * limit < used <= limit
