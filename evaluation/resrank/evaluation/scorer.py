"""What is evaluated: something that embeds texts and scores candidates, wherever the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float16 = NDArray[np.float16]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CandidateVectors:
    """A query and what the reranker reads of its candidates.

    Attributes:
        query: The query's text.
        embeddings: FP16 [N, d] as an index stores them, N at least 1, in the order in which the reranker is shown them.
        embedding: FP32 [d], e_q, for a scorer that can take it; None where it is to be made of the text.
    """

    query: str
    embeddings: Float16
    embedding: Float32 | None = None


class Scorer(Protocol):
    """One checkpoint, in torch or behind the deployed stack.

    Texts over the checkpoint's token maximum are cut, as ``resrank index build`` does it.
    """

    @property
    def max_passages(self) -> int:
        """Candidates that one pass takes."""

    def embed_queries(self, texts: Sequence[str]) -> Float32:
        """Embeds queries, FP32 [len(texts), d]."""

    def score(self, lists: Sequence[CandidateVectors]) -> Iterator[Float32]:
        """Scores candidates.

        Args:
            lists: Each scored by itself. More candidates than ``max_passages`` go in consecutive blocks of that many.

        Yields:
            FP32 [N] of each list, in the order of ``lists``, as soon as it is there.
        """
