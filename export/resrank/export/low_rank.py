"""What training in full has changed about a decoder, as a LoRA adapter: products of low rank in place of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from resrank.core.errors import CheckpointError
from resrank.export.adapters import BackboneAdapter

_READ_BY = {
    "input_layernorm.weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm.weight": ("mlp.gate_proj", "mlp.up_proj"),
}
"""The layers that alone read a norm of Llama's form: its weights are factors on their inputs."""
_ALSO = ("self_attn.o_proj", "mlp.down_proj")  # read no norm
_LAST_NORM = "norm.weight"
_LEAST_FACTOR = 1e-6


@dataclass(frozen=True)
class LowRank:
    """A decoder's change.

    Attributes:
        adapter: W + B·A for each linear layer, norms of the base.
        last_norm: FP32 [h], what the last norm's weights were multiplied by: whoever reads the states has to take it.
        kept: Share of the change's squared Frobenius norm that the ranks leave in, over all layers.
    """

    adapter: BackboneAdapter
    last_norm: Tensor
    kept: float


def low_rank_adapter(base: Mapping[str, Tensor], trained: Mapping[str, Tensor], rank: int) -> LowRank:
    """Takes a decoder's change apart: by the singular value decomposition of each layer's (Eckart and Young, 1936).

    LoRA changes no norm. A norm's trained weights g' = g·f are factors on the inputs of the layers behind it, so
    W'·diag(f) over g computes what W' does over g'.

    Args:
        base: Weights of a decoder of Llama's form, under the names of transformers' base model.
        trained: The same, trained.
        rank: r of every layer; beyond its smaller side there are zeros.

    Raises:
        CheckpointError: The two are of different shapes, differ beyond linear layers and norms, or a norm
            has a weight of 0.
    """
    if {name: tensor.shape for name, tensor in base.items()} != {name: part.shape for name, part in trained.items()}:
        raise CheckpointError("the trained decoder is not of the base's shape")
    tensors: dict[str, Tensor] = {}
    changed = left = 0.0
    explained = {_LAST_NORM}
    layers = sorted({name.split(".")[1] for name in base if name.startswith("layers.")}, key=int)
    for layer in (f"layers.{number}." for number in layers):
        readers = [(name, layer + norm) for norm, names in _READ_BY.items() for name in names]
        for name, norm in (*readers, *((name, None) for name in _ALSO)):
            weight = f"{layer}{name}.weight"
            explained |= {weight} if norm is None else {weight, norm}
            factor = 1.0 if norm is None else _factor(norm, base, trained)
            change = trained[weight].double() * factor - base[weight].double()
            u, s, v = torch.linalg.svd(change, full_matrices=False)
            root = s[:rank].sqrt()
            prefix = f"base_model.model.{layer}{name}"
            beyond = max(0, rank - len(s))  # an adapter has one rank for all layers
            tensors[f"{prefix}.lora_A.weight"] = pad((root[:, None] * v[:rank]).float(), (0, 0, 0, beyond))
            tensors[f"{prefix}.lora_B.weight"] = pad((u[:, :rank] * root).float(), (0, beyond))
            changed += float(s.square().sum())
            left += float(s[:rank].square().sum())
    for name in base.keys() - explained:
        if not torch.equal(base[name], trained[name]):
            raise CheckpointError(f"{name} was trained, which an adapter of linear layers cannot hold")
    names = sorted({name.rpartition(".")[2] for names in (*_READ_BY.values(), _ALSO) for name in names})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": names}
    return LowRank(
        BackboneAdapter(config, tensors), _factor(_LAST_NORM, base, trained).float(), left / (changed or 1.0)
    )


def _factor(norm: str, base: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> Tensor:
    before = base[norm].double()
    if float(before.abs().min()) < _LEAST_FACTOR:
        raise CheckpointError(f"{norm} has a weight of 0: what stands behind it cannot take it over")
    return trained[norm].double() / before
