"""What int8 does to the rankings of an encoder, as measured: ``--precision auto`` takes it where it does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MAX_DIFFERENCE = 0.002
"""Of nDCG@10 on each collection."""

LEAST_COLLECTIONS = 2


@dataclass(frozen=True)
class Int8Rankings:
    """One encoder's.

    Attributes:
        ndcg: Collection to nDCG@10 of its dense ranking, the encoder in fp32 and in int8.
    """

    ndcg: Mapping[str, tuple[float, float]]

    @property
    def passed(self) -> bool:
        """Whether int8 ranks as fp32 does on collections enough."""
        differences = [abs(int8 - fp32) for fp32, int8 in self.ndcg.values()]
        return len(differences) >= LEAST_COLLECTIONS and max(differences) <= MAX_DIFFERENCE


INT8_RANKINGS: Mapping[str, Int8Rankings] = {
    # e5-small, tuned, of checkpoints/default: a least cosine of 0.9997 on passages, and yet not the same rankings.
    "66defd3e8ebd26efb18c8f16ff75c19d25fd7b9746f4c101211d0e4da1704e49": Int8Rankings(
        {"trec-dl21, BM25's 100 candidates": (0.6223, 0.6187), "nfcorpus dev": (0.3295, 0.3304)}
    ),
    # e5-small as it is, of checkpoints/untuned.
    "757aee00b548c8605cb33ba57e4dc365d4dac5fdbca05b41c7983b131e18d124": Int8Rankings(
        {"trec-dl21, BM25's 100 candidates": (0.6158, 0.6133), "nfcorpus dev": (0.3172, 0.3184)}
    ),
}
"""By the encoder's identity (:func:`resrank.core.checkpoint.encoder_identity`)."""
