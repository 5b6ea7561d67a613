"""A search whose models fail answers with what it has, where the caller asked for that."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from resrank.core.errors import (
    DeadlineExceededError,
    InvalidInputError,
    QueueFullError,
    ResRankError,
    RetrievalError,
    ServerFailedError,
)
from resrank.core.names import Model, Tensor
from resrank.core.search_plan import ServedReranker
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.serving.near_steps import NearSteps
from resrank.serving.search import MAX_LATE_CALLS, SearchStep
from resrank.serving.step import Arrays, StepRequest

from .test_search import ENCODER, MAP, MAX_PASSAGES, WEIGHT, Index, Models

OPEN = {"on_failure": "retrieval_order", "k": 6, "candidates": 6}
Failing = dict[Model, Exception | None]
"""Which models fail, and how; None for one that does not answer."""


class FailingModels(Models):
    def __init__(self, failing: Failing) -> None:
        super().__init__()
        self.failing = failing
        self.go = asyncio.Event()
        self.deadlines: list[float | None] = []

    async def infer(self, model: Model, inputs: Arrays, output: Tensor, caller: StepRequest) -> np.ndarray:
        if model in self.failing:
            self.asked.append(model)
            self.deadlines.append(caller.deadline)
            error = self.failing[model]
            if error is not None:
                raise error
            await self.go.wait()
        return await super().infer(model, inputs, output, caller)


def search(failing: Failing, parameters: dict[str, object], index: Index | None = None, **fields: Any) -> Arrays:
    far = NearSteps(FailingModels(failing).infer_outputs, {})
    step = SearchStep(far, index or Index(6), ServedReranker(ENCODER, MAX_PASSAGES, WEIGHT, MAP))
    inputs = {Tensor.QUERY: np.array([[b"q"]], dtype=np.object_)}
    return asyncio.run(step.answer(StepRequest(inputs, parameters=parameters, **fields)))


def failure_of(found: Arrays) -> str:
    text: str = found[Tensor.FAILURE].item().decode()
    return text


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (QueueFullError("Exceeds maximum queue size"), "shed"),
        (DeadlineExceededError("Request timeout expired"), "deadline"),
        (ServerFailedError("the states are not finite"), "failed"),
    ],
)
@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_without_the_reranker_the_order_is_retrievals(mode: str, error: ResRankError, outcome: str) -> None:
    failing: Failing = {Model.RERANK: error}
    found = search(failing, {**OPEN, "mode": mode})
    expected = search({}, {"k": 6, "candidates": 6, "mode": mode, "rerank": False})
    assert found[Tensor.IDS].tolist() == expected[Tensor.IDS].tolist()
    for name in (Tensor.SCORES, Tensor.CANDIDATE_SCORES, Tensor.DENSE_SCORES, Tensor.RERANK_SCORES):
        np.testing.assert_array_equal(found[name], expected[name])
    assert failure_of(found) == f"{outcome}: {error}"
    assert found[Tensor.STAGE_MS][0, 2] == 0
    with pytest.raises(type(error)):
        search(failing, {"mode": mode})


def test_without_the_encoder_words_alone_find_and_nothing_else_is_asked() -> None:
    failing: Failing = {Model.EMBED_QUERY: QueueFullError("Exceeds maximum queue size")}
    index = Index(6)
    found = search(failing, OPEN, index)
    ((request, _),) = index.requests
    assert (request.text, request.embedding, request.include_embeddings) == ("q", b"", False)
    assert failure_of(found).startswith("shed: ")
    assert np.isnan(found[Tensor.DENSE_SCORES]).all()
    np.testing.assert_array_equal(found[Tensor.SCORES], found[Tensor.CANDIDATE_SCORES])
    assert [stage > 0 for stage in found[Tensor.STAGE_MS][0]] == [False, True, False]
    with pytest.raises(QueueFullError):  # a search by vectors alone has no other order
        search(failing, {**OPEN, "mode": "dense"})


@pytest.mark.parametrize("field", ["text", "filter"])
def test_a_query_without_a_word_is_not_blamed_for_an_encoder_that_fails(field: str) -> None:
    class Refusing(Index):
        async def search(self, request: pb.SearchRequest, deadline: float | None) -> pb.SearchResponse:
            raise InvalidInputError(field, "holds no word that could be searched for")

    failing: Failing = {Model.EMBED_QUERY: QueueFullError("Exceeds maximum queue size")}
    with pytest.raises(QueueFullError if field == "text" else InvalidInputError):
        search(failing, OPEN, Refusing(6))
    with pytest.raises(InvalidInputError, match=f"^{field}: "):  # where nothing failed it is the caller's
        search({}, OPEN, Refusing(6))


@pytest.mark.parametrize(("model", "share"), [(Model.RERANK, 0.1), (Model.EMBED_QUERY, 0.3)])
def test_a_model_that_does_not_answer_leaves_time_for_the_answer(model: Model, share: float) -> None:
    models, deadline = FailingModels({model: None}), time.monotonic() + 1.0
    far = NearSteps(models.infer_outputs, {})
    step = SearchStep(far, Index(6), ServedReranker(ENCODER, MAX_PASSAGES, WEIGHT, MAP))
    inputs = {Tensor.QUERY: np.array([[b"q"]], dtype=np.object_)}
    found = asyncio.run(step.answer(StepRequest(inputs, parameters=OPEN, deadline=deadline)))
    assert models.deadlines[0] == pytest.approx(deadline - share, abs=0.1 * share)
    assert failure_of(found).startswith("deadline: no answer with ")
    assert found[Tensor.IDS].shape == (1, 6)


def test_what_went_well_tells_of_no_failure() -> None:
    found = search({}, OPEN)
    assert failure_of(found) == ""
    np.testing.assert_array_equal(found[Tensor.IDS], search({}, {"k": 6, "candidates": 6})[Tensor.IDS])


def test_the_callers_and_the_indexs_faults_stay_errors() -> None:
    for model in (Model.EMBED_QUERY, Model.RERANK):
        with pytest.raises(InvalidInputError, match="QUERY: too many tokens"):
            search({model: InvalidInputError("QUERY", "too many tokens")}, OPEN)
    with pytest.raises(RetrievalError, match="belongs to encoder"):
        search({}, OPEN, Index(6, "f" * 64))
    with pytest.raises(InvalidInputError, match=r"on_failure: unknown .limit error or retrieval_order, got ignore"):
        search({}, {"on_failure": "ignore"})


def test_of_a_model_that_stands_still_so_many_calls_are_waited_for_and_no_more() -> None:
    async def run() -> tuple[list[str], list[Model], int]:
        models = FailingModels({Model.RERANK: None})
        step = SearchStep(
            NearSteps(models.infer_outputs, {}), Index(3), ServedReranker(ENCODER, MAX_PASSAGES, WEIGHT, MAP)
        )
        inputs = {Tensor.QUERY: np.array([[b"q"]], dtype=np.object_)}
        parameters = {"on_failure": "retrieval_order", "mode": "lexical", "k": 3, "candidates": 3}

        async def ask() -> str:
            return failure_of(
                await step.answer(StepRequest(inputs, parameters=parameters, deadline=time.monotonic() + 0.2))
            )

        late = await asyncio.gather(*(ask() for _ in range(MAX_LATE_CALLS)))
        asked = len(models.asked)
        refused = await ask()
        assert len(models.asked) == asked, "one more was asked"
        models.go.set()
        await asyncio.sleep(0)
        models.failing.clear()
        await asyncio.sleep(0.01)
        return [*late, refused, await ask()], models.asked, asked

    failures, _, asked = asyncio.run(run())
    assert asked == MAX_LATE_CALLS
    assert all(text.startswith("deadline: ") for text in failures[:MAX_LATE_CALLS])
    assert failures[-2] == f"shed: the models are late with {MAX_LATE_CALLS} calls of other searches"
    assert failures[-1] == ""
