"""Requests as a foreign program makes them: plain ``tritonclient.grpc``, nothing of this project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
from tritonclient.utils import np_to_triton_dtype


def tensor(name: str, values: np.ndarray) -> triton_grpc.InferInput:
    made = triton_grpc.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    made.set_data_from_numpy(values)
    return made


def texts(name: str, values: Sequence[str | bytes] | Sequence[Sequence[str | bytes]]) -> triton_grpc.InferInput:
    """BYTES [len(values), ...]."""
    rows = [[values_] if isinstance(values_, str | bytes) else values_ for values_ in values]
    encoded = [[text.encode() if isinstance(text, str) else text for text in row] for row in rows]
    return tensor(name, np.array(encoded, dtype=np.object_))


def rerank_inputs(query: str | bytes, candidates: np.ndarray) -> list[Any]:
    """One row of ``rerank``: a query and its FP16 [N, d] candidates."""
    return [texts("QUERY", [query]), tensor("CANDIDATES", candidates[None])]


def unit_vectors(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """FP16 [count, dim], each of length 1."""
    vectors = np.random.default_rng(seed).standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
