"""Vectors as serving hands them to the reranker."""

from __future__ import annotations

from torch import Tensor


def as_stored(embeddings: Tensor) -> Tensor:
    """Rounds through FP16, as an index does, while gradients pass as if nothing had happened (straight-through).

    Args:
        embeddings: FP32 [P, d].

    Returns:
        FP32 [P, d] of values that FP16 can hold.
    """
    exact = embeddings.detach()
    # The difference of neighbours is exact, and so is the sum: the values are those of FP16 to the bit.
    return embeddings + (exact.half().float() - exact)
