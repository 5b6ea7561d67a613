"""The scoring step: padding cut off, states that are no numbers told, and the sum worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resrank.core.names import Tensor
from resrank.serving.residual_scoring import ResidualScoringStep
from resrank.serving.step import StepRequest
from support.tiny_checkpoint import make_tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint") / "out"
    make_tiny_checkpoint(out, residual_gate=0.5, query_residual=True, state_norm="none")
    return out


def inputs() -> dict[Tensor, np.ndarray]:
    return {
        Tensor.PASSAGE_STATES: np.array([[[2, 0], [0, 4], [9, 9]]], dtype=np.float32),
        Tensor.QUERY_STATE: np.array([[2, 2]], dtype=np.float32),
        Tensor.CANDIDATES: np.array([[[0, 1], [-1, 0], [7, 7]]], dtype=np.float16),
        Tensor.CANDIDATE_COUNT: np.array([[2]]),
        Tensor.QUERY_EMBEDDING: np.array([[0, -1]], dtype=np.float32),
    }


def test_scores_worked_by_hand(folder: Path) -> None:
    """z_1 = (1, 1), z_2 = (-1, 2), z_q = (1, 0); the third candidate is padding."""
    (outcome,) = ResidualScoringStep(folder).run([StepRequest(inputs())])
    np.testing.assert_allclose(outcome[Tensor.SCORES], [[1 / np.sqrt(2), -1 / np.sqrt(5)]], rtol=1e-6)
    assert outcome[Tensor.SCORES].dtype == np.float32


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        (Tensor.PASSAGE_STATES, np.full((1, 3, 2), np.nan, dtype=np.float32), "the reranker's states are not finite"),
        (Tensor.PASSAGE_STATES, np.ones((1, 2, 2), dtype=np.float32), r"PASSAGE_STATES: shape \(1, 2, 2\) is not"),
        (Tensor.CANDIDATE_COUNT, np.array([[4]]), r"CANDIDATE_COUNT: not in range \(limit 3, got 4\)"),
        (Tensor.CANDIDATE_COUNT, np.array([[0]]), r"CANDIDATE_COUNT: not in range \(limit 3, got 0\)"),
    ],
)
def test_only_the_wrong_request_fails(folder: Path, tensor: Tensor, value: np.ndarray, message: str) -> None:
    wrong = StepRequest({**inputs(), tensor: value})
    good, refused = ResidualScoringStep(folder).run([StepRequest(inputs()), wrong])
    assert Tensor.SCORES in good
    assert isinstance(refused, Exception)
    with pytest.raises(type(refused), match=message):
        raise refused
