"""Scoring against hand-worked numbers, a loop written from the formula, and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resrank.core.scoring import fuse, normalize, ranking, score


def by_loops(
    passages: np.ndarray,
    query: np.ndarray,
    candidates: np.ndarray,
    query_embedding: np.ndarray | None,
    gate: float,
    unit_states: bool,
) -> list[float]:
    """The formula of docs/architecture.md in Python floats, one scalar at a time."""

    def unit(vector: list[float]) -> list[float]:
        length = math.sqrt(sum(x * x for x in vector))
        return [x / length for x in vector]

    def fused(state: np.ndarray, embedding: np.ndarray | None) -> list[float]:
        h = [float(x) for x in state]
        h = unit(h) if unit_states else h
        e = [0.0] * len(h) if embedding is None else [float(x) for x in embedding]
        return [gate * a + b for a, b in zip(h, e, strict=True)]

    z_q = unit(fused(query, query_embedding))
    return [
        sum(a * b for a, b in zip(z_q, unit(fused(state, e)), strict=True))
        for state, e in zip(passages, candidates, strict=True)
    ]


def test_hand_worked_example() -> None:
    # z_q = (1,0) + (0,1) = (1,1); z_1 = (0,1) + (1,0) = (1,1): cosine 1. z_2 = (0,-1) + (-1,0): cosine -1.
    # z_3 = (1,0) + (0,-1) = (1,-1): cosine 0.
    passages = np.array([[[0, 2], [0, -3], [5, 0]]], np.float32)
    query = np.array([[4, 0]], np.float32)
    candidates = np.array([[[1, 0], [-1, 0], [0, -1]]], np.float16)
    query_embedding = np.array([[0, 1]], np.float32)
    scores = score(passages, query, candidates, query_embedding, gate=1.0, normalize_states=True)
    np.testing.assert_allclose(scores, [[1.0, -1.0, 0.0]], atol=1e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 9),
    d=st.integers(2, 17),
    gate=st.floats(0.05, 4.0),
    unit_states=st.booleans(),
    query_residual=st.booleans(),
)
def test_agrees_with_the_formula_written_as_loops(
    seed: int, n: int, d: int, gate: float, unit_states: bool, query_residual: bool
) -> None:
    rng = np.random.default_rng(seed)
    passages = rng.standard_normal((2, n, d)).astype(np.float32)
    queries = rng.standard_normal((2, d)).astype(np.float32)
    candidates = rng.standard_normal((2, n, d)).astype(np.float16)
    residual = rng.standard_normal((2, d)).astype(np.float32) if query_residual else None
    scores = score(passages, queries, candidates, residual, gate=gate, normalize_states=unit_states)
    assert scores.dtype == np.float32
    for row in range(2):
        expected = by_loops(
            passages[row], queries[row], candidates[row], None if residual is None else residual[row], gate, unit_states
        )
        np.testing.assert_allclose(scores[row], expected, atol=2e-4)


def test_dense_start_is_the_retrievers_cosine_whatever_the_reranker_says() -> None:
    rng = np.random.default_rng(3)
    candidates = rng.standard_normal((1, 50, 16)).astype(np.float16)
    query = rng.standard_normal((1, 16)).astype(np.float32)
    broken = np.full((1, 50, 16), np.nan, np.float32)
    scores = score(broken, broken[:, 0], candidates, query, gate=0.0, normalize_states=True)
    expected = torch.nn.functional.cosine_similarity(
        torch.from_numpy(candidates.astype(np.float32)), torch.from_numpy(query)[:, None], dim=-1
    )
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-6)


@given(hnp.arrays(np.float32, (4, 8), elements=st.floats(-100, 100, width=32)), st.floats(0.5, 20))
def test_normalize_ignores_scale_and_keeps_zero(vectors: np.ndarray, factor: float) -> None:
    unit = normalize(vectors)
    lengths = np.linalg.norm(unit, axis=-1)
    long_enough = np.linalg.norm(vectors, axis=-1) > 1e-3
    np.testing.assert_allclose(lengths[long_enough], 1.0, atol=1e-5)
    np.testing.assert_allclose(normalize(vectors * np.float32(factor))[long_enough], unit[long_enough], atol=1e-4)
    assert not normalize(np.zeros((1, 8), np.float32)).any()


def test_fuse_without_embedding_is_the_scaled_state() -> None:
    states = np.array([[3.0, 4.0]], np.float32)
    np.testing.assert_allclose(fuse(states, None, gate=2.0, normalize_states=True), [[1.2, 1.6]], rtol=1e-6)
    np.testing.assert_allclose(fuse(states, None, gate=2.0, normalize_states=False), [[6.0, 8.0]])


@pytest.mark.parametrize(
    ("scores", "order"), [([0.1, 0.9, 0.5], [1, 2, 0]), ([0.5, 0.5, 0.9, 0.5], [2, 0, 1, 3]), ([1.0], [0])]
)
def test_ranking_breaks_ties_by_input_index(scores: list[float], order: list[int]) -> None:
    assert ranking(np.array(scores, np.float32)).tolist() == order
