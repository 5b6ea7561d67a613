"""L_enc: InfoNCE on the encoder's embeddings, with a mask for passages that are probably relevant but not labelled."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cosines(queries: Tensor, passages: Tensor) -> Tensor:
    """Every query's cosine with every passage.

    Args:
        queries: FP32 [Q, d].
        passages: FP32 [P, d].

    Returns:
        FP32 [Q, P].
    """
    return functional.normalize(queries, dim=-1) @ functional.normalize(passages, dim=-1).T


def false_negatives(similarities: Tensor, positive: Tensor, margin: float) -> Tensor:
    """Passages that are probably relevant although nobody labelled them so.

    Source: Qwen3-Embedding (arXiv 2506.05176), section 3, the mask m_ij, with margin 0.1.

    Args:
        similarities: FP32 [Q, P], mapped cosines; read without gradients.
        positive: BOOL [Q, P], the labelled ones.
        margin: How far above its best labelled passage's similarity to a query a passage must be.

    Returns:
        BOOL [Q, P]; False everywhere for a query without a labelled passage.
    """
    known = similarities.detach()
    best = known.masked_fill(~positive, float("-inf")).amax(dim=1, keepdim=True)
    return (known > best + margin) & ~positive & positive.any(dim=1, keepdim=True)


def info_nce(similarities: Tensor, positive: Tensor, ignored: Tensor, temperature: float) -> Tensor:
    """The mean of −log( exp(c⁺/τ1) / (exp(c⁺/τ1) + Σ exp(c⁻/τ1)) ) over each query's positives, then over queries.

    A query's other positives are not its negatives. Source: van den Oord et al., arXiv 1807.03748; docs/training.md.

    Args:
        similarities: FP32 [Q, P] cosines of :func:`cosines`.
        positive: BOOL [Q, P], relevant passages; a query with none adds nothing and does not count in the mean.
        ignored: BOOL [Q, P], passages that are neither positive nor negative.
        temperature: τ1.

    Returns:
        FP32 []; 0 when no query has a positive.
    """
    scaled = similarities / temperature
    negative = ~(positive | ignored)
    # Finite instead of -inf, so that a query without a negative has the loss 0 and no NaN in its gradient.
    rivals = scaled.masked_fill(~negative, torch.finfo(scaled.dtype).min).logsumexp(dim=1, keepdim=True)
    losses = functional.softplus(rivals - scaled) * positive
    per_query = losses.sum(dim=1) / positive.sum(dim=1).clamp_min(1)
    return per_query.sum() / positive.any(dim=1).sum().clamp_min(1)
