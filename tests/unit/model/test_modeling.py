"""The torch model against the backbones called by hand, one row and one position at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from resrank.core.checkpoint import Norm, file_sha256, folder_sha256, read_spec, write_spec
from resrank.core.errors import CheckpointError
from resrank.core.prompt import PromptLayout, pad_candidates
from resrank.core.scoring import score
from resrank.model.modeling import EXPORT_ATTENTION, ResRankModel
from support.tiny_checkpoint import make_tiny_checkpoint

LAYOUT = PromptLayout(before_query=(5, 6), before_passages=(7,), after_passages=(8,), eos_id=9, placeholder_id=0)


@pytest.fixture(scope="module", params=["linear", "identity"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ResRankModel]:
    folder = tmp_path_factory.mktemp("tiny") / request.param
    if request.param == "linear":
        make_tiny_checkpoint(folder, embedding_dim=32, hidden_size=48, query_residual=True)
    else:
        make_tiny_checkpoint(folder, embedding_dim=32, hidden_size=32, encoder_family="llama", pooling="last")
    with torch.inference_mode():
        yield ResRankModel.from_checkpoint(folder)


def test_states_are_the_decoders_over_concatenated_embeddings(model: ResRankModel) -> None:
    d = model.spec.encoder.embedding_dim
    queries, counts = [[11, 12, 13, 14], [15]], [3, 6]
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randn(2, 6, d, generator=generator).half()
    candidates[0] = torch.from_numpy(pad_candidates(candidates[:1, :3].numpy(), 6)[0])
    batch = LAYOUT.batch(queries, counts)
    passage_states, query_state = model.states(
        torch.from_numpy(batch.input_ids),
        torch.from_numpy(batch.passage_positions),
        torch.from_numpy(batch.last_position),
        candidates,
    )
    embed = model.reranker.get_input_embeddings()
    for row, (query, count) in enumerate(zip(queries, counts, strict=True)):
        x = candidates[row, :count].float()
        if model.spec.encoder.embedding_dim != model.spec.reranker.hidden_size:
            x = x @ model.p_in.weight.T
        x = x * model.spec.fusion.input_scale
        head, tail = embed(torch.tensor([5, 6, *query, 7])), embed(torch.tensor([8, 9]))
        hidden = model.reranker(inputs_embeds=torch.cat([head, x, tail])[None]).last_hidden_state[0]
        project = (lambda h: h) if isinstance(model.p_out, torch.nn.Identity) else (lambda h: h @ model.p_out.weight.T)
        first = len(head)
        torch.testing.assert_close(
            passage_states[row, :count], project(hidden[first : first + count]), atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(query_state[row], project(hidden[-1]), atol=1e-4, rtol=1e-4)


@torch.inference_mode(mode=False)
def test_padding_passes_no_gradient_on(tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "tiny", embedding_dim=32, hidden_size=48)
    model = ResRankModel.from_checkpoint(tmp_path / "tiny")
    candidates = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(3)).half()
    gradients = []
    for width in (3, 8):
        padded = torch.from_numpy(pad_candidates(candidates.numpy(), width)).float().requires_grad_(True)
        batch = LAYOUT.batch([[11, 12], [13]], [3, width])
        rows = [array[:1] for array in (batch.input_ids, batch.passage_positions[:, :width], batch.last_position)]
        passages, query = model.states(*(torch.from_numpy(row) for row in rows), padded)
        model.zero_grad()
        (passages[:, :3].square().sum() + query.square().sum()).backward()
        assert padded.grad is not None
        assert not padded.grad[:, 3:].any()
        gradients.append((padded.grad[:, :3], model.p_in.weight.grad))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-3, rtol=1e-3)


def test_later_passages_do_not_reach_earlier_ones(model: ResRankModel) -> None:
    d = model.spec.encoder.embedding_dim
    batch = LAYOUT.batch([[11, 12]], [4])
    arguments = [torch.from_numpy(array) for array in (batch.input_ids, batch.passage_positions, batch.last_position)]
    candidates = torch.randn(1, 4, d, generator=torch.Generator().manual_seed(1))
    changed = candidates.clone()
    changed[0, 2] += 1.0
    before, before_query = model.states(*arguments, candidates)
    after, after_query = model.states(*arguments, changed)
    torch.testing.assert_close(before[0, :2], after[0, :2])
    assert not torch.allclose(before[0, 2:], after[0, 2:], atol=1e-3)
    assert not torch.allclose(before_query, after_query, atol=1e-3)


def test_padding_does_not_reach_embeddings_and_export_attention_agrees(model: ResRankModel) -> None:
    ids = torch.tensor([[11, 12, 13, 14, 15, 16], [17, 18, 19, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    together = model.encode(ids, mask)
    alone = torch.cat([model.encode(ids[:1], mask[:1]), model.encode(ids[1:, :3], mask[1:, :3])])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(2))
    with model.exporting():
        assert model.encoder.config._attn_implementation == EXPORT_ATTENTION
        torch.testing.assert_close(model.encode(ids, mask), alone, atol=1e-5, rtol=1e-4)
    assert model.encoder.config._attn_implementation != EXPORT_ATTENTION


def test_pooling_is_what_the_checkpoint_says(model: ResRankModel) -> None:
    ids, mask = torch.tensor([[11, 12, 13, 14]]), torch.tensor([[1, 1, 1, 0]])
    hidden = model.encoder(input_ids=ids[:, :3]).last_hidden_state[0]
    by_hand = hidden.mean(dim=0) if model.spec.encoder.pooling == "mean" else hidden[2]
    torch.testing.assert_close(model.encode(ids, mask)[0], by_hand / by_hand.norm(), atol=1e-5, rtol=1e-4)


def test_torch_score_and_numpy_score_are_twins(model: ResRankModel) -> None:
    d = model.spec.encoder.embedding_dim
    generator = torch.Generator().manual_seed(2)
    passages, query = torch.randn(2, 5, d, generator=generator), torch.randn(2, d, generator=generator)
    candidates = torch.randn(2, 5, d, generator=generator).half()
    embedding = torch.randn(2, d, generator=generator) if model.spec.fusion.query_residual else None
    by_numpy = score(
        passages.numpy(),
        query.numpy(),
        candidates.numpy(),
        None if embedding is None else embedding.numpy(),
        gate=model.spec.fusion.residual_gate,
        normalize_states=model.spec.fusion.state_norm is Norm.L2,
    )
    np.testing.assert_allclose(by_numpy, model.score(passages, query, candidates, embedding).numpy(), atol=1e-5)


def test_sizes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    make_tiny_checkpoint(folder, embedding_dim=32, hidden_size=48)
    spec = read_spec(folder)
    reranker = spec.reranker.model_copy(update={"hidden_size": 64})
    fusion = spec.fusion.model_copy(update={"projectors_sha256": None})
    write_spec(spec.model_copy(update={"reranker": reranker, "fusion": fusion}), folder)
    with pytest.raises(CheckpointError, match=r"p_out.weight \[32, 48\], not p_in.weight \[64, 32\]"):
        ResRankModel.from_checkpoint(folder)
    save_file(
        {"p_in.weight": torch.zeros(64, 32), "p_out.weight": torch.zeros(32, 64)}, folder / "projectors.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"resrank\.json: fusion\.projectors_sha256 is missing"):
        ResRankModel.from_checkpoint(folder)
    fusion = fusion.model_copy(update={"projectors_sha256": file_sha256(folder / "projectors.safetensors")})
    write_spec(spec.model_copy(update={"reranker": reranker, "fusion": fusion}), folder)
    with pytest.raises(CheckpointError, match=r"reranker\.hidden_size: 64, but the backbone's hidden size is 48"):
        ResRankModel.from_checkpoint(folder)


def test_a_weight_that_is_not_there_is_never_drawn_at_random(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    spec = make_tiny_checkpoint(folder)
    file = folder / "reranker" / "model.safetensors"
    weights = load_file(file)
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    reranker = spec.reranker.model_copy(update={"sha256": folder_sha256(folder / "reranker")})
    write_spec(spec.model_copy(update={"reranker": reranker}), folder)
    with pytest.raises(CheckpointError, match=r"1 weights are missing, the first is layers\.1\.mlp\.up_proj"):
        ResRankModel.from_checkpoint(folder)


@pytest.mark.parametrize("name", ["reranker/model.safetensors", "projectors.safetensors"])
def test_garbled_weights_are_a_checkpoint_error(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "tiny"
    make_tiny_checkpoint(folder)
    (folder / name).write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match=r"cannot (be read|load it)|not a safetensors file"):
        ResRankModel.from_checkpoint(folder, verify_hashes=False)
