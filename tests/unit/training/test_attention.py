"""Training's attention against the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from resrank.training.attention import training_attention


class Layer(nn.Module):
    def __init__(self, *, causal: bool, groups: int) -> None:
        super().__init__()
        self.is_causal = causal
        self.num_key_value_groups = groups


def by_formula(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, groups: int) -> Tensor:
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    products = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).masked_fill(~allowed, float("-inf"))
    return (products.softmax(dim=-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
def test_values_and_gradients_are_those_of_the_formula(dtype: torch.dtype, causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    heads = (4, 2, 2) if causal else (4, 4, 4)
    narrow = [torch.randn(3, count, 7, 8, generator=generator).to(dtype).requires_grad_(True) for count in heads]
    wide = [tensor.detach().double().requires_grad_(True) for tensor in narrow]
    lengths = torch.tensor([7, 4, 5])
    present = (torch.arange(7) < lengths[:, None])[:, None, None, :]
    allowed = torch.ones(7, 7, dtype=torch.bool).tril().expand(3, 1, 7, 7) if causal else present.expand(3, 1, 7, 7)
    layer = Layer(causal=causal, groups=heads[0] // heads[1])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        found, weights = training_attention(layer, *narrow, None if causal else allowed, dropout=0.0)
    assert weights is None
    assert found.dtype == dtype
    expected = by_formula(*wide, allowed, layer.num_key_value_groups)
    exact = dtype is torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5 if exact else 2**-8 * 3, rtol=0)
    upstream = torch.randn(expected.shape, generator=generator)
    (found.float() * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for one, other in zip(narrow, wide, strict=True):
        error = (one.grad.double() - other.grad).norm() / other.grad.norm()  # type: ignore[union-attr]
        assert error < (1e-5 if exact else 2**-8)  # one rounding of the result, none of the products
