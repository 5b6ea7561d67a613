"""A decoder trained in full as an adapter: the same states, as far as the ranks go, over the base's norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaModel

from resrank.core.errors import CheckpointError
from resrank.export.low_rank import LowRank, low_rank_adapter
from support.tiny_checkpoint import make_llama

WIDTH = 48  # one side of every layer, and so all ranks


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    folder = tmp_path_factory.mktemp("llama")
    make_llama(folder, WIDTH)
    model: LlamaModel = LlamaModel.from_pretrained(folder).eval()
    return model


def weights(model: LlamaModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trained(base: LlamaModel, rank: int) -> dict[str, Tensor]:
    """Every layer changed by a product of a rank, and every norm."""
    generator = torch.Generator().manual_seed(0)
    found = weights(base)
    for name, tensor in found.items():
        if tensor.dim() == 1:
            found[name] = tensor * (1 + 0.3 * torch.rand(tensor.shape, generator=generator))
        elif name.startswith("layers."):
            out, inner = tensor.shape
            left, right = torch.randn(out, rank, generator=generator), torch.randn(rank, inner, generator=generator)
            found[name] = tensor + 0.02 * left @ right
    return found


def states(model: LlamaModel, held: dict[str, Tensor]) -> Tensor:
    before = weights(model)
    model.load_state_dict(held)
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(12)[None]).last_hidden_state
    model.load_state_dict(before)
    return found


def merged(base: LlamaModel, found: LowRank) -> dict[str, Tensor]:
    held = weights(base)
    tensors = found.adapter.tensors
    for name in tensors:
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            held[layer.removeprefix("base_model.model.") + ".weight"] += (
                tensors[f"{layer}.lora_B.weight"] @ tensors[name]
            )
    return held


def test_with_all_ranks_states_are_the_trained_ones(base: LlamaModel) -> None:
    target = trained(base, 3)
    found = low_rank_adapter(weights(base), target, WIDTH)
    expected, reached = states(base, target), states(base, merged(base, found)) * found.last_norm
    torch.testing.assert_close(reached, expected, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(states(base, weights(base)), expected, atol=0.1)


def test_every_layer_has_the_rank_that_the_adapter_says(base: LlamaModel) -> None:
    found = low_rank_adapter(weights(base), trained(base, 3), WIDTH + 1)  # above the smaller side of every layer
    for name, tensor in found.adapter.tensors.items():
        assert tensor.shape[0 if name.endswith("lora_A.weight") else 1] == WIDTH + 1
    assert found.kept == pytest.approx(1)


def test_fewer_ranks_keep_what_is_largest(base: LlamaModel) -> None:
    target = trained(base, 6)
    found = [low_rank_adapter(weights(base), target, rank) for rank in (1, 4, WIDTH)]
    shares = [part.kept for part in found]
    assert shares == sorted(shares)
    assert 0.1 < shares[0] < shares[1] < shares[2] <= 1
    expected = states(base, target)
    errors = [float((states(base, merged(base, part)) * part.last_norm - expected).square().mean()) for part in found]
    assert errors == sorted(errors, reverse=True)
    (a,) = {
        tuple(t.shape) for n, t in found[1].adapter.tensors.items() if n.endswith("0.self_attn.q_proj.lora_A.weight")
    }
    assert a == (4, WIDTH)


def test_what_an_adapter_cannot_hold_is_named(base: LlamaModel) -> None:
    for name, change, problem in (
        ("embed_tokens.weight", lambda tensor: tensor + 1, "embed_tokens.weight was trained"),
        ("norm.weight", lambda tensor: tensor[:-1], "not of the base's shape"),
    ):
        target = weights(base)
        target[name] = change(target[name])
        with pytest.raises(CheckpointError, match=problem):
            low_rank_adapter(weights(base), target, 2)
    silent = weights(base)
    silent["layers.1.input_layernorm.weight"] *= 0
    with pytest.raises(CheckpointError, match=r"input_layernorm\.weight has a weight of 0"):
        low_rank_adapter(silent, silent, 2)
