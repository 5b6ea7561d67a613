"""``rerank_text`` encodes a passage once, keeps to its memory, tells about it, and scores as without the cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from resrank.serving.cache_metrics import HITS, LIMIT, MISSES, USED
from resrank.serving.embedding_cache import ENTRY_BYTES
from support.triton_requests import rerank_inputs, texts

from .conftest import CACHE_MIB, Searching

QUERY = "which river"


def rerank_text(searching: Searching, passages: list[str], **options: object) -> np.ndarray:
    inputs = [texts("QUERY", [QUERY]), texts("PASSAGES", [passages])]
    return searching.client.infer("rerank_text", inputs, **options).as_numpy("SCORES")[0]


def test_the_second_time_nothing_is_encoded_and_the_scores_are_the_same(searching: Searching) -> None:
    passages = [f"the seine {place}" for place in range(10)]
    hits, misses, encoded = searching.cache_metric(HITS), searching.cache_metric(MISSES), searching.passages_encoded()
    cold = rerank_text(searching, [*passages, passages[0]])
    assert searching.passages_encoded() - encoded == len(passages)
    warm = rerank_text(searching, [*passages, passages[0]])
    assert searching.passages_encoded() - encoded == len(passages)
    np.testing.assert_array_equal(warm, cold)
    assert searching.cache_metric(MISSES) - misses == len(passages)
    assert searching.cache_metric(HITS) - hits == len(passages) + 2

    # What no cache has seen: the vectors by `embed_passage`, scored by `rerank`.
    embedded = searching.client.infer("embed_passage", [texts("TEXT", passages)]).as_numpy("EMBEDDING")
    candidates = np.concatenate([embedded, embedded[:1]]).astype(np.float16)
    scores = searching.client.infer("rerank", rerank_inputs(QUERY, candidates)).as_numpy("SCORES")[0]
    np.testing.assert_allclose(warm, scores, atol=1e-6)


def test_requests_at_the_same_time_encode_a_new_passage_once(searching: Searching) -> None:
    passages = [f"many want the moon {place}" for place in range(12)]
    encoded = searching.passages_encoded()
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: rerank_text(searching, passages), range(12)))
    assert searching.passages_encoded() - encoded == len(passages)
    for scores in answers:
        np.testing.assert_allclose(scores, answers[0], atol=1e-5)


def test_a_passage_that_was_cut_is_not_found_by_who_would_not_have_it_cut(searching: Searching) -> None:
    passages = ["moon " * 200, "seine"]
    rerank_text(searching, passages, parameters={"truncate": True})
    encoded = searching.passages_encoded()
    for _ in range(2):
        with pytest.raises(InferenceServerException, match=r"PASSAGES\[0\]: too many tokens \(limit 64, got \d+\)"):
            rerank_text(searching, passages)
    rerank_text(searching, passages, parameters={"truncate": True})
    assert searching.passages_encoded() == encoded


def test_the_memory_is_bounded_and_the_bound_told(searching: Searching) -> None:
    limit = CACHE_MIB * 1024 * 1024
    assert searching.cache_metric(LIMIT) == limit
    fits = limit // (2 * searching.spec.encoder.embedding_dim + ENTRY_BYTES)
    rows = 64
    for start in range(0, fits + 16 * rows, 16 * rows):
        passages = [[f"{start + 16 * row + place}" for place in range(16)] for row in range(rows)]
        inputs = [texts("QUERY", [QUERY] * rows), texts("PASSAGES", passages)]
        searching.client.infer("rerank_text", inputs)
        assert searching.cache_metric(USED) <= limit
    assert searching.cache_metric(USED) > 0.9 * limit
    encoded = searching.passages_encoded()
    rerank_text(searching, [str(place) for place in range(4)])
    assert searching.passages_encoded() - encoded == 4, "the oldest ones had to go"
