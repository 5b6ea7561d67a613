"""The orders that need no LLM, against brute force and worked examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.checkpoint import FusionSpec, Norm, Projector
from resrank.core.errors import CheckpointError
from resrank.evaluation.baselines import Projectors, dense_scores, rocchio_scores
from resrank.model.modeling import ResRankModel
from support.tiny_checkpoint import make_tiny_checkpoint


def vectors(count: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """FP32 [dim] and FP16 [count, dim], of any length."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=dim).astype(np.float32), rng.normal(size=(count, dim)).astype(np.float16)


@given(st.integers(1, 20), st.integers(1, 16), st.integers(0, 1000))
def test_dense_scores_are_brute_force_cosines(count: int, dim: int, seed: int) -> None:
    query, passages = vectors(count, dim, seed)
    expected = [float(p @ query / (np.linalg.norm(p) * np.linalg.norm(query))) for p in passages.astype(np.float64)]
    np.testing.assert_allclose(dense_scores(query, passages), expected, atol=2e-6)


def test_rocchio_by_hand() -> None:
    query = np.array([2.0, 0.0], np.float32)  # its length does not matter
    angles = np.radians([0, 60, 60, 30, 75])
    passages = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    # The three nearest are at 0, 30 and 60 degrees (the first of the two at 60): their mean points to 30 degrees.
    feedback = np.array([1 + np.cos(np.pi / 6) + 0.5, np.sin(np.pi / 6) + np.sin(np.pi / 3)]) / 3
    moved = np.array([1.0, 0.0]) + 0.75 * feedback
    expected = np.cos(angles - np.arctan2(moved[1], moved[0]))

    nearest_first = np.array([0, 3, 1, 2, 4])
    np.testing.assert_allclose(rocchio_scores(query, passages, nearest_first), expected, atol=1e-3)


def test_rocchio_of_fewer_passages_than_it_takes() -> None:
    query, passages = vectors(2, 4, 0)
    assert rocchio_scores(query, passages, np.arange(2)).shape == (2,)


def fusion(**fields: object) -> FusionSpec:
    return FusionSpec(
        **{"projector": Projector.LINEAR, "input_scale": 2.0, "residual_gate": 0.5, "query_residual": True, **fields}
    )


@pytest.mark.parametrize("query_residual", [True, False])
@pytest.mark.parametrize("norm", list(Norm))
def test_projectors_alone_by_a_loop(norm: Norm, query_residual: bool) -> None:
    query, passages = vectors(5, 3, 1)
    rng = np.random.default_rng(2)
    p_in, p_out = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)

    def fused(e: np.ndarray, residual: bool) -> np.ndarray:
        h = p_out @ (2.0 * (p_in @ e))
        if norm is Norm.L2:
            h = h / np.linalg.norm(h)
        return 0.5 * h + e if residual else 0.5 * h

    z_q = fused(query, query_residual)
    expected = []
    for passage in passages.astype(np.float32):
        z = fused(passage, True)
        expected.append(z @ z_q / (np.linalg.norm(z) * np.linalg.norm(z_q)))
    alone = Projectors(p_in, p_out, fusion(state_norm=norm, query_residual=query_residual))
    np.testing.assert_allclose(alone.scores(query, passages), expected, atol=1e-5)


@pytest.mark.parametrize("query_residual", [True, False])
def test_without_projectors_the_dense_order_is_left(query_residual: bool) -> None:
    query, passages = vectors(30, 8, 3)
    passages = (passages / np.linalg.norm(passages.astype(np.float32), axis=1, keepdims=True)).astype(np.float16)
    identity = Projectors(None, None, fusion(projector=Projector.IDENTITY, query_residual=query_residual))
    np.testing.assert_allclose(identity.scores(query, passages), dense_scores(query, passages), atol=2e-3)


def test_at_gate_zero_the_dense_scores_are_left_to_the_bit() -> None:
    query, passages = vectors(30, 3, 4)
    rng = np.random.default_rng(5)
    p_in, p_out = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    closed = Projectors(p_in, p_out, fusion(residual_gate=0.0))
    np.testing.assert_array_equal(closed.scores(query, passages), dense_scores(query, passages))


def test_a_checkpoints_projectors_are_read(tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "checkpoint", query_residual=True)
    model = ResRankModel.from_checkpoint(tmp_path / "checkpoint")
    query, passages = vectors(6, 32, 6)
    with torch.no_grad():
        scale = model.spec.fusion.input_scale
        states = model.p_out(scale * model.p_in(torch.from_numpy(np.vstack([passages.astype(np.float32), query]))))
        expected = model.score(
            states[None, :-1], states[None, -1], torch.from_numpy(passages)[None], torch.from_numpy(query)[None]
        )[0]

    alone = Projectors.of(tmp_path / "checkpoint")

    np.testing.assert_allclose(alone.scores(query, passages), expected.numpy(), atol=1e-5)
    (tmp_path / "checkpoint" / "projectors.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"projectors.safetensors: not a safetensors file"):
        Projectors.of(tmp_path / "checkpoint")
