"""``rerank_text`` calls ``embed_passage`` in chunks, then ``rerank``, and tells errors by the caller's own names."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from resrank.core.errors import InvalidInputError, Place, QueueFullError, ResRankError
from resrank.core.names import Model, Tensor
from resrank.serving.cache_metrics import CacheMetrics
from resrank.serving.embedding_cache import EmbeddingCache
from resrank.serving.rerank_text import TextRerankingStep
from resrank.serving.step import Arrays, StepRequest
from support.pb_metrics import PbMetrics


class Repository:
    """Models of arithmetic: a passage's vector is its number and 1; its score is that number."""

    def __init__(self) -> None:
        self.chunks: list[int] = []

    async def infer(self, model: Model, inputs: Arrays, output: Tensor, caller: StepRequest) -> np.ndarray:
        await asyncio.sleep(0)
        if model is Model.RERANK:
            assert output is Tensor.SCORES
            assert inputs[Tensor.CANDIDATES].dtype == np.float16
            return inputs[Tensor.CANDIDATES][:, :, 0].astype(np.float32)
        texts = inputs[Tensor.TEXT][:, 0].tolist()
        self.chunks.append(len(texts))
        for row, text in enumerate(texts):
            name = Place("TEXT", () if len(texts) == 1 else (row,))
            if text == b"long" and not caller.truncate:
                raise InvalidInputError(name, "too many tokens", limit=4, value=9)
            if text == b"shed":
                raise QueueFullError("Exceeds maximum queue size")
        return np.array([[float(text) if text.isdigit() else 0.0, 1.0] for text in texts], dtype=np.float32)

    async def infer_outputs(
        self, model: Model, inputs: Arrays, outputs: Sequence[Tensor], caller: StepRequest
    ) -> Mapping[Tensor, np.ndarray]:
        """Of a query 5 tokens were read, of a passage as many as it has digits."""
        told = {outputs[0]: await self.infer(model, inputs, outputs[0], caller)}
        rows = next(iter(inputs.values()))[:, 0].tolist()
        lengths = [[5 if model is Model.RERANK else len(row)] for row in rows]
        return told | {output: np.array(lengths, np.int32) for output in outputs[1:]}


def rerank(
    *rows: list[str], truncate: bool = False, query: bytes = b"q", wanted: Sequence[str] = ()
) -> tuple[Any, Repository]:
    repository = Repository()
    step = TextRerankingStep(
        repository.infer,
        EmbeddingCache("e" * 64, 1_000_000),
        CacheMetrics(PbMetrics(), "rerank_text", 1_000_000),
        embed_batch_size=4,
        max_passages=10,
        infer_outputs=repository.infer_outputs if wanted else None,
    )
    inputs = {
        Tensor.QUERY: np.array([[query]] * len(rows), dtype=np.object_),
        Tensor.PASSAGES: np.array([[text.encode() for text in row] for row in rows], dtype=np.object_),
    }
    try:
        return asyncio.run(step.answer(StepRequest(inputs, truncate, wanted=wanted))), repository
    except ResRankError as error:
        return error, repository


def numbers(start: int, count: int) -> list[str]:
    return [str(number) for number in range(start, start + count)]


@pytest.mark.parametrize(("count", "chunks"), [(1, [1]), (4, [4]), (5, [4, 1]), (10, [4, 4, 2])])
def test_chunks_are_no_longer_than_embed_passage_takes(count: int, chunks: list[int]) -> None:
    outcome, repository = rerank(numbers(0, count))
    assert repository.chunks == chunks
    np.testing.assert_array_equal(outcome[Tensor.SCORES], [np.arange(count)])


def test_rows_stay_apart() -> None:
    outcome, repository = rerank(numbers(0, 3), numbers(10, 3), numbers(20, 3))
    assert repository.chunks == [4, 4, 1]
    np.testing.assert_array_equal(outcome[Tensor.SCORES], [[0, 1, 2], [10, 11, 12], [20, 21, 22]])


def test_tokens_are_counted_for_who_asks_each_passage_once() -> None:
    rows = [["1", "22", "1"], ["333", "22", "4444"]]
    outcome, _ = rerank(*rows, wanted=("SCORES", "TOKENS_READ"))
    assert outcome[Tensor.TOKENS_READ].tolist() == [[5 + 3], [5 + 7]]
    np.testing.assert_array_equal(outcome[Tensor.SCORES], [[1, 22, 1], [333, 22, 4444]])
    outcome, _ = rerank(*rows, wanted=("SCORES",))
    assert set(outcome) == {Tensor.SCORES, Tensor.TOKENS_CUT}


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ([["long"]], "PASSAGES[0]"),
        ([[*numbers(0, 4), "long"]], "PASSAGES[4]"),
        ([[*numbers(0, 6), "long", "long"]], "PASSAGES[6]"),
        ([numbers(0, 3), ["1", "2", "long"]], "PASSAGES[1][2]"),
    ],
)
def test_a_chunks_error_names_the_callers_passage(rows: list[list[str]], field: str) -> None:
    outcome, _ = rerank(*rows)
    assert isinstance(outcome, InvalidInputError)
    assert str(outcome) == f"{field}: too many tokens (limit 4, got 9)"


def test_the_first_error_in_the_callers_order_is_told() -> None:
    outcome, _ = rerank(["long", *numbers(0, 4), "shed"])
    assert isinstance(outcome, InvalidInputError)
    outcome, _ = rerank(["shed", *numbers(0, 4), "long"])
    assert isinstance(outcome, QueueFullError)


def test_truncate_goes_along() -> None:
    outcome, _ = rerank(["long", "3"], truncate=True)
    np.testing.assert_array_equal(outcome[Tensor.SCORES], [[0, 3]])


@pytest.mark.parametrize(
    ("row", "query", "message"),
    [
        ([], b"q", "PASSAGES: no passages (limit at least 1, got 0)"),
        (numbers(0, 11), b"q", "PASSAGES: too many passages in one pass (limit 10, got 11)"),
        (["1"], b" ", "QUERY: empty or only whitespace"),
    ],
)
def test_what_can_be_refused_is_refused_before_anything_is_embedded(row: list[str], query: bytes, message: str) -> None:
    outcome, repository = rerank(row, query=query)
    assert isinstance(outcome, ResRankError)
    assert str(outcome) == message
    assert repository.chunks == []
