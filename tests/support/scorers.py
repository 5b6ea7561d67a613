"""Scorers whose answers a test can work out itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from resrank.core.run_files import Ranking
from resrank.evaluation.passes import Question
from resrank.evaluation.scorer import CandidateVectors


class FirstComponentScorer:
    """A passage's score is its vector's first component, less a penalty for each place in the pass.

    A penalty of 0 knows no order, a large one copies it.
    """

    def __init__(self, max_passages: int = 4, penalty: float = 0.0) -> None:
        self.max_passages = max_passages
        self.penalty = penalty
        self.passes: list[int] = []

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """FP32 [n, 2], the first axis for each."""
        return np.tile(np.array([1.0, 0.0], np.float32), (len(texts), 1))

    def score(self, lists: Sequence[CandidateVectors]) -> Iterator[np.ndarray]:
        for one in lists:
            first = one.embeddings[:, 0].astype(np.float32)
            places = np.arange(len(first)) % self.max_passages
            self.passes.append(len(first))
            yield first - np.float32(self.penalty) * places.astype(np.float32)


def question(id_: str, **cosines: float) -> Question:
    """A question along the first axis, with candidates that have these cosines, found in this order."""
    first = np.array(list(cosines.values()))
    vectors = np.stack([first, np.sqrt(1 - first**2)], axis=1).astype(np.float16).reshape(-1, 2)
    found = Ranking(tuple(cosines), np.arange(len(cosines), 0, -1, dtype=np.float32))
    return Question(id_, f"What is {id_}?", found, np.array([1.0, 0.0], np.float32), vectors)
