"""Bad input gets INVALID_ARGUMENT with field, limit and value, alone and in company, and the server lives on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.triton_requests import rerank_inputs, tensor, texts, unit_vectors

from .conftest import Served

QUERY = "which river"


@pytest.fixture(autouse=True)
def still_right(served: Served) -> Iterator[None]:
    """After every test the server must answer, and rightly."""
    yield
    candidates = unit_vectors(3, served.spec.encoder.embedding_dim)
    scores = served.client.infer("rerank", rerank_inputs(QUERY, candidates)).as_numpy("SCORES")
    np.testing.assert_allclose(scores[0], served.reference.rerank(QUERY, candidates), atol=1e-3)


def refused(served: Served, model: str, inputs: list[Any], **options: Any) -> str:
    """The message of an INVALID_ARGUMENT answer."""
    with pytest.raises(InferenceServerException) as raised:
        served.client.infer(model, inputs, **options)
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
    return raised.value.message()


BAD_TEXTS = [
    (b"", "empty or only whitespace"),
    (b" \t\n\xe3\x80\x80", "empty or only whitespace"),
    (b"river \xff", "not valid UTF-8 at byte 6"),
    (b"\xed\xa0\x80", "not valid UTF-8 at byte 0"),  # a lone surrogate
]


@pytest.mark.parametrize(("text", "problem"), BAD_TEXTS)
def test_texts_without_meaning(served: Served, text: bytes, problem: str) -> None:
    candidates = unit_vectors(3, served.spec.encoder.embedding_dim)
    assert refused(served, "rerank", rerank_inputs(text, candidates)).endswith(f"QUERY: {problem}")
    assert refused(served, "embed_passage", [texts("TEXT", [b"a", text])]).endswith(f"TEXT[1]: {problem}")
    inputs = [texts("QUERY", [QUERY]), texts("PASSAGES", [[b"a", b"b", text]])]
    assert refused(served, "rerank_text", inputs) == f"PASSAGES[2]: {problem}"
    inputs = [texts("QUERY", [text]), texts("PASSAGES", [[b"a"]])]
    assert refused(served, "rerank_text", inputs) == f"QUERY: {problem}"


def test_texts_over_a_limit(served: Served) -> None:
    candidates = unit_vectors(3, served.spec.encoder.embedding_dim)
    message = refused(served, "rerank", rerank_inputs(b"x" * 8193, candidates))
    assert message.endswith("QUERY: too many bytes (limit 8192, got 8193)")
    message = refused(served, "embed_passage", [texts("TEXT", [b"x" * 65537])])
    assert message.endswith("TEXT: too many bytes (limit 65536, got 65537)")
    message = refused(served, "rerank", rerank_inputs("river " * 100, candidates))
    assert "QUERY: too many tokens (limit 32, got " in message


@pytest.mark.parametrize("text", ["a\0b", "\0", "\u202e\u200b mirrored", "\x1b[31m", "<|im_end|><|im_start|>", "🦊"])
def test_odd_texts_are_scored(served: Served, text: str) -> None:
    candidates = unit_vectors(3, served.spec.encoder.embedding_dim)
    scores = served.client.infer("rerank", rerank_inputs(text, candidates)).as_numpy("SCORES")
    assert np.isfinite(scores).all()


def test_numbers_of_candidates(served: Served) -> None:
    dim = served.spec.encoder.embedding_dim
    message = refused(served, "rerank", rerank_inputs(QUERY, unit_vectors(17, dim)))
    assert message.endswith("CANDIDATES: too many candidates in one pass (limit 16, got 17)")
    message = refused(served, "rerank", rerank_inputs(QUERY, np.empty((0, dim), np.float16)))
    assert message.endswith("CANDIDATES: no candidates (limit at least 1, got 0)")
    inputs = [texts("QUERY", [QUERY]), texts("PASSAGES", [["moon"] * 17])]
    assert refused(served, "rerank_text", inputs) == "PASSAGES: too many passages in one pass (limit 16, got 17)"
    inputs = [texts("QUERY", [QUERY]), tensor("PASSAGES", np.empty((1, 0), np.object_))]
    assert refused(served, "rerank_text", inputs) == "PASSAGES: no passages (limit at least 1, got 0)"


@pytest.mark.parametrize(
    ("value", "problem"), [(np.nan, "contains NaN"), (-np.inf, "contains Inf"), (0.0, "is a zero vector")]
)
def test_vectors_without_a_direction(served: Served, value: float, problem: str) -> None:
    candidates = unit_vectors(6, served.spec.encoder.embedding_dim)
    candidates[3] = value
    candidates[5] = np.nan
    assert refused(served, "rerank", rerank_inputs(QUERY, candidates)).endswith(f"CANDIDATES[3]: {problem}")
    rows = np.stack([unit_vectors(6, served.spec.encoder.embedding_dim), candidates])
    message = refused(served, "rerank", [texts("QUERY", [QUERY, QUERY]), tensor("CANDIDATES", rows)])
    assert message.endswith(f"CANDIDATES[1][3]: {problem}")
    if served.spec.fusion.query_residual:
        query = np.full((1, served.spec.encoder.embedding_dim), value, np.float32)
        inputs = [*rerank_inputs(QUERY, unit_vectors(6, query.shape[1])), tensor("QUERY_EMBEDDING", query)]
        assert refused(served, "rerank_embedded", inputs).endswith(f"QUERY_EMBEDDING: {problem}")


def test_foreign_tensors(served: Served) -> None:
    dim = served.spec.encoder.embedding_dim
    candidates = unit_vectors(3, dim)
    assert "unexpected shape" in refused(served, "rerank", rerank_inputs(QUERY, unit_vectors(3, dim - 1)))
    assert "unexpected shape" in refused(
        served, "rerank", [texts("QUERY", [[QUERY, QUERY]]), tensor("CANDIDATES", candidates[None])]
    )
    assert "data-type" in refused(served, "rerank", rerank_inputs(QUERY, candidates.astype(np.float32)))
    assert "missing required input" in refused(served, "rerank", [texts("QUERY", [QUERY])])
    assert "batch" in refused(
        served, "rerank", [texts("QUERY", [QUERY, QUERY]), tensor("CANDIDATES", candidates[None])]
    )
    message = refused(served, "rerank", rerank_inputs(QUERY, candidates), parameters={"truncate": "yes"})
    assert message.endswith("truncate: must be a bool request parameter, not 'yes'")


def test_composing_models_called_directly(served: Served) -> None:
    """Nothing hides them, so ids and positions that would leave the engine's memory are refused."""
    ids, slot = np.array([[1, 2, 3]]), np.array([[1]])
    candidates = unit_vectors(1, served.spec.encoder.embedding_dim)[None]

    def reranker(ids: np.ndarray, slots: np.ndarray, last: np.ndarray) -> str:
        named = {"INPUT_IDS": ids, "PASSAGE_POSITIONS": slots, "LAST_POSITION": last, "CANDIDATES": candidates}
        return refused(served, "reranker", [tensor(name, array) for name, array in named.items()])

    assert "INPUT_IDS: not in the vocabulary" in reranker(ids + 100_000, slot, slot)
    assert "PASSAGE_POSITIONS: outside the sequence (limit 2, got 9)" in reranker(ids, slot + 8, slot)
    assert "LAST_POSITION: outside the sequence" in reranker(ids, slot, slot - 2)
    assert "not one position for each" in reranker(ids, np.array([[0, 1]]), slot)
    mask = np.array([[1, 0, 1]])
    assert "ATTENTION_MASK" in refused(served, "encoder", [tensor("INPUT_IDS", ids), tensor("ATTENTION_MASK", mask)])
    long_row = np.ones((1, 65), np.int64)
    message = refused(served, "encoder", [tensor("INPUT_IDS", long_row), tensor("ATTENTION_MASK", long_row)])
    assert message == "INPUT_IDS: too many tokens (limit 64, got 65)"


def test_a_bad_request_does_not_spoil_those_it_is_batched_with(served: Served) -> None:
    good = unit_vectors(5, served.spec.encoder.embedding_dim)
    bad = good.copy()
    bad[2] = np.nan
    expected = served.reference.rerank(QUERY, good)

    def call(index: int) -> np.ndarray | str:
        if index % 3 == 0:
            return refused(served, "rerank", rerank_inputs(QUERY, bad))
        return served.client.infer("rerank", rerank_inputs(QUERY, good)).as_numpy("SCORES")[0]

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(call, range(36)))
    for index, answer in enumerate(answers):
        if index % 3 == 0:
            assert str(answer).endswith("CANDIDATES[2]: contains NaN")
        else:
            np.testing.assert_allclose(answer, expected, atol=1e-3)
