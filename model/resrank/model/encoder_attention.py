"""What bidirectional encoders need to attend exactly in exported graphs, where transformers itself builds no masks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.configuration_utils import PretrainedConfig

_LOCAL = "modernbert"
_BIASED = "mpnet"


def has_local_layers(config: PretrainedConfig) -> bool:
    """Whether an encoder alternates global layers and local ones that :func:`token_mask` masks exactly."""
    return bool(config.model_type == _LOCAL)


def token_mask(config: PretrainedConfig, attention_mask: Tensor) -> Tensor | dict[str, Tensor]:
    """The mask that a bidirectional encoder's layers read in exported graphs.

    Args:
        config: The encoder's; ModernBERT's ``sliding_window`` says how far its local layers see to either side.
        attention_mask: INT64 [B, L], 1 on tokens.

    Returns:
        Boolean [B, 1, 1, L], True on tokens. For ModernBERT such a mask for each type of layer, that of the local
        layers being [B, 1, L, L].
    """
    tokens = attention_mask[:, None, None, :].bool()
    if not has_local_layers(config):
        return tokens
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    distance = (places[:, None] - places[None, :]).abs()
    # Padding further than the window from every token would attend to nothing, and the softmax of nothing is NaN, which
    # even a weight of 0 carries into the tokens' rows. So each position sees itself; tokens do anyway.
    local = ((distance <= config.sliding_window) & tokens) | (distance == 0)
    return {"full_attention": tokens, "sliding_attention": local}


def is_biased(config: PretrainedConfig) -> bool:
    """Whether an encoder adds a bias to its attention's products in code of its own, past transformers' interface."""
    return bool(config.model_type == _BIASED)


@contextlib.contextmanager
def biased_attention(encoder: PreTrainedModel) -> Iterator[None]:
    """Within the context MPNet's layers attend in one operator, which engines fuse, and read a boolean mask.

    Args:
        encoder: An MPNet; changed within the context only.
    """
    from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

    layers = [module for module in encoder.modules() if isinstance(module, MPNetSelfAttention)]
    for layer in layers:
        # An instance's attribute goes before its class's method; hooks and modules stay as they are.
        setattr(layer, "forward", MethodType(_attend_with_bias, layer))  # noqa: B010
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _attend_with_bias(
    self: Any, hidden_states: Tensor, attention_mask: Tensor, position_bias: Tensor, **_: object
) -> tuple[Tensor]:
    """``MPNetSelfAttention.forward`` by ``scaled_dot_product_attention``.

    Args:
        self: The layer.
        hidden_states: [B, L, h].
        attention_mask: Boolean [B, 1, 1, L], True on tokens.
        position_bias: [B, H, L, L], what the distance of two positions adds to their product.
        **_: What transformers passes for caches and outputs that nobody reads.

    Returns:
        [B, L, h].
    """
    heads = (*hidden_states.shape[:-1], self.num_attention_heads, self.attention_head_size)
    query, key, value = (project(hidden_states).view(heads).transpose(1, 2) for project in (self.q, self.k, self.v))
    bias = position_bias.masked_fill(~attention_mask, -torch.inf)
    context = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return (self.o(context.transpose(1, 2).flatten(2)),)
