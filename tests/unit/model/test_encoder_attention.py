"""The attention that is exported against transformers' own, for every family that can be an encoder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from resrank.model.modeling import EXPORT_ATTENTION, PRODUCT_ATTENTION, ResRankModel
from support.tiny_families import DECODERS, ENCODERS, LOCAL_WINDOW, make_family_checkpoint

LENGTHS = (30, 3, 17)
"""Rows far longer than a local layer's window, and one whose padding no token's window reaches."""


@pytest.fixture(scope="module", params=[*DECODERS, *ENCODERS])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ResRankModel]:
    folder = tmp_path_factory.mktemp("families") / request.param
    make_family_checkpoint(request.param, folder)
    with torch.inference_mode():
        yield ResRankModel.from_checkpoint(folder)


def test_rows_padded_together_and_exported_are_rows_alone_and_stock(model: ResRankModel) -> None:
    assert min(LENGTHS) + LOCAL_WINDOW < max(LENGTHS)
    generator = torch.Generator().manual_seed(4)
    vocabulary = model.encoder.config.vocab_size
    ids = torch.randint(4, vocabulary, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    alone = torch.cat([model.encode(ids[row, None, :n], mask[row, None, :n]) for row, n in enumerate(LENGTHS)])
    for attention in (EXPORT_ATTENTION, PRODUCT_ATTENTION):
        with model.exporting(attention):
            torch.testing.assert_close(model.encode(ids, mask), alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.encode(ids, mask), alone, atol=1e-5, rtol=1e-4)


def test_every_layer_changes_the_embedding(model: ResRankModel) -> None:
    """Else the comparisons of this family would not see a layer that is exported wrong."""
    ids = torch.arange(4, 24)[None]
    whole = model.encode(ids, torch.ones_like(ids))
    attention = [module for name, module in model.encoder.named_modules() if name.endswith(_ATTENTION_OUTPUTS)]
    assert len(attention) == model.encoder.config.num_hidden_layers
    for output in attention:
        hook = output.register_forward_hook(lambda _module, _inputs, result: torch.zeros_like(result))
        without = model.encode(ids, torch.ones_like(ids))
        hook.remove()
        assert torch.nn.functional.cosine_similarity(whole, without) < 0.99


_ATTENTION_OUTPUTS = ("self_attn.o_proj", "attention.output.dense", "attn.o", "attn.Wo")
"""The layer behind attention, by the names that the families give it."""
