"""Steps that ``search`` takes in its own process answer as the models do that Triton would call."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resrank.core.checkpoint import SlotContent, SlotSpec
from resrank.core.errors import CheckpointError, InvalidInputError, QueueFullError, ServerFailedError
from resrank.core.names import Model, Tensor
from resrank.serving.near_steps import NEAR_MODELS, NearSteps
from resrank.serving.rerank_prompt import PromptingStep
from resrank.serving.step import Arrays, StepRequest
from resrank.serving.tokenizer import TokenizationStep
from support.tiny_checkpoint import make_tiny_checkpoint

TEXT = np.array([[b"first query"]], dtype=np.object_)
CALLER = StepRequest({})


class Triton:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Model, Arrays]] = []

    async def infer_outputs(
        self, model: Model, inputs: Arrays, outputs: Sequence[Tensor], caller: StepRequest
    ) -> dict[Tensor, np.ndarray]:
        self.asked.append((model, inputs))
        return {output: np.full((1, 32), 0.5, np.float32) for output in outputs}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As export fills the version folder of ``search``."""
    folder = tmp_path_factory.mktemp("search")
    make_tiny_checkpoint(
        folder / "checkpoint",
        compact=True,
        slots=SlotSpec(content=SlotContent.RELATIONS, neighbors=4),
        residual_gate=0.0,
        score_residual=0.3,
        query_residual=True,
    )
    for model in NEAR_MODELS:
        (folder / model).mkdir()
        shutil.copy(folder / "checkpoint/resrank.json", folder / model)
    shutil.copy(folder / "checkpoint/encoder/tokenizer.json", folder / Model.QUERY_TOKENIZER)
    return folder


PARAMETERS = {
    "near_steps": json.dumps({**{model: {} for model in NEAR_MODELS}, "residual_scoring": {"score_residual": "2"}})
}


def call(near: NearSteps, model: Model, inputs: Arrays, *outputs: Tensor) -> Any:
    return asyncio.run(near(model, inputs, outputs, CALLER))


def test_the_steps_answer_as_their_models_and_nothing_is_asked(version: Path) -> None:
    triton = Triton()
    near = NearSteps.read(triton.infer_outputs, version, PARAMETERS)

    tokens = call(near, Model.QUERY_TOKENIZER, {Tensor.TEXT: TEXT}, Tensor.INPUT_IDS)
    (expected,) = TokenizationStep(version / Model.QUERY_TOKENIZER, for_queries=True).run(
        [StepRequest({Tensor.TEXT: TEXT})]
    )
    assert list(tokens) == [Tensor.INPUT_IDS]
    np.testing.assert_array_equal(tokens[Tensor.INPUT_IDS], expected[Tensor.INPUT_IDS])  # type: ignore[index]

    candidates = np.random.default_rng(0).standard_normal((1, 5, 32)).astype(np.float16)
    asked = {
        Tensor.QUERY: TEXT,
        Tensor.CANDIDATES: candidates,
        Tensor.QUERY_EMBEDDING: candidates[:, 0].astype(np.float32),
    }
    laid_out = call(near, Model.RERANK_PROMPT, asked, Tensor.RELATIONS, Tensor.CANDIDATE_PLACES, Tensor.CANDIDATES)
    (expected,) = PromptingStep(version / Model.RERANK_PROMPT).run([StepRequest(asked)])
    for tensor, found in laid_out.items():
        np.testing.assert_array_equal(found, expected[tensor])  # type: ignore[index]

    joined = {
        Tensor.SCORE_RESIDUALS: np.arange(5, dtype=np.float32)[None],
        Tensor.CANDIDATES: candidates,
        Tensor.CANDIDATE_COUNT: np.array([[5]]),
        Tensor.QUERY_EMBEDDING: asked[Tensor.QUERY_EMBEDDING],
    }
    scores = call(near, Model.RESIDUAL_SCORING, joined, Tensor.SCORES)[Tensor.SCORES]
    rows, query = candidates[0].astype(np.float64), candidates[0, 0].astype(np.float64)
    cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    np.testing.assert_allclose(scores[0], cosines + 2 * np.arange(5), atol=1e-5)
    assert triton.asked == []


def test_a_query_goes_to_the_encoder_as_tokens(version: Path) -> None:
    triton = Triton()
    near = NearSteps.read(triton.infer_outputs, version, PARAMETERS)
    assert asyncio.run(near.embed_query(TEXT, CALLER)).shape == (1, 32)
    ((model, inputs),) = triton.asked
    assert model is Model.ENCODER
    assert set(inputs) == {Tensor.INPUT_IDS, Tensor.ATTENTION_MASK}


def test_where_export_put_nothing_at_hand_all_goes_through_triton(tmp_path: Path) -> None:
    triton = Triton()
    near = NearSteps.read(triton.infer_outputs, tmp_path, {})
    asyncio.run(near.embed_query(TEXT, CALLER))
    call(near, Model.RERANK_PROMPT, {Tensor.QUERY: TEXT}, Tensor.CANDIDATES)
    assert [model for model, _ in triton.asked] == [Model.EMBED_QUERY, Model.RERANK_PROMPT]


def test_a_bad_query_is_refused_by_name_and_a_missing_file_at_the_start(version: Path, tmp_path: Path) -> None:
    triton = Triton()
    near = NearSteps.read(triton.infer_outputs, version, PARAMETERS)
    with pytest.raises(InvalidInputError, match=r"^QUERY: too many tokens"):
        asyncio.run(near.embed_query(np.array([[b"query " * 500]], dtype=np.object_), CALLER))
    assert triton.asked == []
    with pytest.raises(CheckpointError, match="query_tokenizer"):
        NearSteps.read(triton.infer_outputs, tmp_path, PARAMETERS)


class Failing:
    """A step that fails, as an answer or as a crash."""

    def __init__(self, error: Exception, *, crashes: bool) -> None:
        self.error, self.crashes = error, crashes

    def run(self, requests: Sequence[StepRequest]) -> list[Any]:
        if self.crashes:
            raise self.error
        return [self.error]


@pytest.mark.parametrize("crashes", [False, True])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidInputError("QUERY", "empty"), InvalidInputError),
        (QueueFullError("full"), QueueFullError),
        (CheckpointError("the states are not finite"), ServerFailedError),
        (ValueError("a fault"), ServerFailedError),
    ],
)
def test_an_error_is_of_the_type_that_it_has_through_triton(
    error: Exception, kind: type[Exception], *, crashes: bool
) -> None:
    near = NearSteps(Triton().infer_outputs, {Model.RERANK_PROMPT: Failing(error, crashes=crashes)})
    with pytest.raises(kind, match=str(error)):
        call(near, Model.RERANK_PROMPT, {}, Tensor.CANDIDATES)
