"""Steps that pad to buckets: shapes are the buckets', and padding changes no embedding and no score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from resrank.core.errors import InvalidInputError
from resrank.core.names import Tensor
from resrank.export.parity import TOLERANCES
from resrank.model.modeling import ResRankModel
from resrank.serving.engines.base import Precision
from resrank.serving.rerank_prompt import PromptingStep
from resrank.serving.residual_scoring import ResidualScoringStep
from resrank.serving.step import Arrays, Step, StepRequest
from resrank.serving.tokenizer import TokenizationStep
from support.tiny_checkpoint import make_tiny_checkpoint

PROMPT_BUCKETS = {"sequence_buckets": "48,64,96", "candidate_buckets": "4,8"}
TOLERANCE = TOLERANCES[Precision.FP32].score


@pytest.fixture(scope="module", params=["bert-mean", "llama-last"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("buckets") / request.param
    family, pooling = request.param.split("-")
    make_tiny_checkpoint(
        folder,
        encoder_family=family,
        pooling=pooling,
        append_eos=pooling == "last",
        query_residual=True,
    )
    for part in ("encoder", "reranker"):  # as the version folder of a step has it
        version = folder / f"{part}_step"
        version.mkdir()
        for file in (folder / "resrank.json", *(folder / part).glob("tokenizer*.json")):
            (version / file.name).write_bytes(file.read_bytes())
    return folder


def run(step: Step, inputs: Arrays, *, truncate: bool = False) -> Arrays:
    (outcome,) = step.run([StepRequest(inputs, truncate)])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def column(texts: Sequence[str]) -> np.ndarray:
    return np.array([[text.encode()] for text in texts], dtype=np.object_)


def candidates(rows: int, count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((rows, count, 32)).astype(np.float16)


@pytest.mark.parametrize("for_queries", [False, True])
def test_padded_tokens_have_the_same_embeddings(checkpoint: Path, for_queries: bool) -> None:
    folder = checkpoint / "encoder_step"
    texts = column(["the seine", "Paris is the capital of France"])
    alone = run(TokenizationStep(folder, for_queries=for_queries), {Tensor.TEXT: texts})
    length = alone[Tensor.INPUT_IDS].shape[1]
    step = TokenizationStep(folder, {"token_buckets": f"{length - 1},{length + 5},64"}, for_queries=for_queries)
    padded = run(step, {Tensor.TEXT: texts})
    assert padded[Tensor.INPUT_IDS].shape == padded[Tensor.ATTENTION_MASK].shape == (2, length + 5)
    np.testing.assert_array_equal(padded[Tensor.INPUT_IDS][:, :length], alone[Tensor.INPUT_IDS])
    assert not padded[Tensor.ATTENTION_MASK][:, length:].any()
    model = ResRankModel.from_checkpoint(checkpoint)
    with torch.inference_mode():
        embeddings = [
            model.encode(torch.from_numpy(made[Tensor.INPUT_IDS]), torch.from_numpy(made[Tensor.ATTENTION_MASK]))
            for made in (alone, padded)
        ]
    np.testing.assert_allclose(*embeddings, atol=TOLERANCE)


@pytest.mark.parametrize(("count", "width"), [(2, 4), (4, 4), (5, 8), (8, 8)])
def test_padded_prompts_have_the_same_scores(checkpoint: Path, count: int, width: int) -> None:
    folder = checkpoint / "reranker_step"
    inputs = {
        Tensor.QUERY: column(["river", "which river flows through the capital"]),
        Tensor.CANDIDATES: candidates(2, count),
        Tensor.QUERY_EMBEDDING: np.random.default_rng(0).standard_normal((2, 32), dtype=np.float32),
    }
    alone, padded = run(PromptingStep(folder), inputs), run(PromptingStep(folder, PROMPT_BUCKETS), inputs)
    assert alone[Tensor.CANDIDATES].shape[1] == count
    assert alone[Tensor.INPUT_IDS].shape[1] not in (48, 64, 96)
    assert padded[Tensor.INPUT_IDS].shape[1] in (48, 64, 96)
    assert padded[Tensor.PASSAGE_POSITIONS].shape == (2, width)
    assert padded[Tensor.CANDIDATES].shape == (2, width, 32)
    assert padded[Tensor.CANDIDATE_COUNT].tolist() == [[count], [count]]
    model = ResRankModel.from_checkpoint(checkpoint)
    scoring = ResidualScoringStep(folder)
    scores = []
    for made in (alone, padded):
        with torch.inference_mode():
            states, query_state = model.states(
                *(
                    torch.from_numpy(made[name])
                    for name in (
                        Tensor.INPUT_IDS,
                        Tensor.PASSAGE_POSITIONS,
                        Tensor.LAST_POSITION,
                        Tensor.CANDIDATES,
                    )
                )
            )
        state_inputs = {Tensor.PASSAGE_STATES: states.numpy(), Tensor.QUERY_STATE: query_state.numpy()}
        scores.append(run(scoring, {**made, **state_inputs})[Tensor.SCORES])
    assert scores[1].shape == (2, count)
    np.testing.assert_allclose(*scores, atol=TOLERANCE)


def test_the_longest_bucket_bounds_a_text(checkpoint: Path) -> None:
    step = TokenizationStep(checkpoint / "encoder_step", {"token_buckets": "8,16"}, for_queries=False)
    long = {Tensor.TEXT: column(["seine " * 40])}
    with pytest.raises(InvalidInputError, match=r"TEXT: too many tokens \(limit 16, got \d+\)"):
        run(step, long)
    assert run(step, long, truncate=True)[Tensor.INPUT_IDS].shape == (1, 16)


def test_the_longest_buckets_bound_a_request(checkpoint: Path) -> None:
    step = PromptingStep(checkpoint / "reranker_step", PROMPT_BUCKETS)
    query, vector = column(["x"]), np.ones((1, 32), np.float32)
    refused = r"CANDIDATES: too many candidates in one pass \(limit 8, got 9\)"
    with pytest.raises(InvalidInputError, match=refused):
        run(step, {Tensor.QUERY: query, Tensor.CANDIDATES: candidates(1, 9), Tensor.QUERY_EMBEDDING: vector})


def test_a_query_that_leaves_no_room_is_refused_or_cut(checkpoint: Path) -> None:
    folder = checkpoint / "reranker_step"
    query = column(["x", "zqzqzqzqzqzqzqzqzqzq"])
    inputs = {
        Tensor.QUERY: query,
        Tensor.CANDIDATES: candidates(2, 8),
        Tensor.QUERY_EMBEDDING: np.ones((2, 32), np.float32),
    }
    free = run(PromptingStep(folder), inputs)[Tensor.INPUT_IDS]
    step = PromptingStep(folder, {"sequence_buckets": str(free.shape[1] - 3)})
    with pytest.raises(
        InvalidInputError, match=r"QUERY\[1\]: too many tokens beside 8 candidates \(limit 17, got 20\)"
    ):
        run(step, inputs)
    cut = run(step, inputs, truncate=True)
    assert cut[Tensor.INPUT_IDS].shape[1] == free.shape[1] - 3
    assert cut[Tensor.LAST_POSITION][1, 0] == free.shape[1] - 4
    no_room = PromptingStep(folder, {"sequence_buckets": "9"})
    for truncate in (False, True):
        with pytest.raises(InvalidInputError, match=r"too many tokens beside 8 candidates \(limit 0, got 1\)"):
            run(no_room, inputs, truncate=truncate)


@pytest.mark.parametrize("buckets", ["", "a", "16,8", "0,8", "8,8"])
def test_buckets_that_are_none_stop_the_model(checkpoint: Path, buckets: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^token_buckets: "):
        TokenizationStep(checkpoint / "encoder_step", {"token_buckets": buckets}, for_queries=False)
    with pytest.raises(InvalidInputError, match=r"^candidate_buckets: "):
        PromptingStep(checkpoint / "reranker_step", {"candidate_buckets": buckets})
