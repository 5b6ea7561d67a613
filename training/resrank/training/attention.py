"""The attention that training uses: transformers' own, except on CPUs in bf16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

TRAINING_ATTENTION = "resrank_training"
"""Name under which transformers finds :func:`training_attention`."""


def training_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, in fp32 on CPUs.

    torch's CPU kernel takes bf16, but its backward pass is then two to three times slower than in fp32 (torch 2.13,
    one core, 100 positions: 23 ms against 11): a quarter of a step of the default reranker.

    Args:
        module: The attention layer.
        query: [B, H, S, D].
        key: [B, H_kv, S, D].
        value: [B, H_kv, S, D].
        attention_mask: As transformers makes it for its ``sdpa`` attention.
        **options: Scaling, dropout and the like.

    Returns:
        [B, S, H, D] in the query's type, and None for the attention weights that nobody reads.
    """
    if query.device.type != "cpu":
        context, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return context, None
    with torch.autocast("cpu", enabled=False):
        context, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **options
        )
    return context.to(query.dtype), None


AttentionInterface.register(TRAINING_ATTENTION, training_attention)
AttentionMaskInterface.register(TRAINING_ATTENTION, sdpa_mask)
