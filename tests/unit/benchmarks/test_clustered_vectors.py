from __future__ import annotations

import faiss
import numpy as np
import pytest

from resrank.benchmarks.clustered_vectors import clustered_vectors, nearest, recall


def test_vectors_and_queries_have_length_one_and_the_seed_decides() -> None:
    one, other = clustered_vectors(500, 16, 3), clustered_vectors(500, 16, 3)
    assert one.passages.shape == (500, 16)
    np.testing.assert_allclose(np.linalg.norm(one.passages.astype(np.float32), axis=1), 1, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(one.queries, axis=1), 1, atol=1e-5)
    assert np.array_equal(one.passages, other.passages)
    assert not np.array_equal(one.passages, clustered_vectors(500, 16, 3, seed=1).passages)


def test_neighbours_are_much_nearer_than_strangers() -> None:
    vectors = clustered_vectors(5000, 64, 20)
    cosines = np.sort(vectors.queries @ vectors.passages.astype(np.float32).T, axis=1)
    assert cosines[:, -10:].mean() > 0.45
    assert abs(np.median(cosines)) < 0.2


def test_nearest_are_those_that_faiss_finds_exhaustively() -> None:
    vectors = clustered_vectors(3000, 24, 10)
    rows = vectors.passages.astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = faiss.IndexFlatIP(24)
    index.add(rows)
    _, expected = index.search(vectors.queries, 20)
    assert recall(list(expected), nearest(vectors, 20)) == 1.0


def test_recall_is_the_share_of_true_neighbours_found() -> None:
    exact = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall([np.array([4, 3, 2, 1]), np.array([8, 9, -1, 5])], exact) == pytest.approx(6 / 8)
    assert recall([np.array([], np.int64), np.array([0])], exact) == 0.0
