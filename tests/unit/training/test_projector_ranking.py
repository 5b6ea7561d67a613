"""The start of P_out that a linear map of the vectors decides, against loops over single lists."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from resrank.core.errors import InvalidInputError
from resrank.training.embedding_table import EmbeddingTable
from resrank.training.list_scores import score_lists
from resrank.training.projector_ranking import rank_projectors
from resrank.training.stage_config import RankingLossConfig
from support.tiny_checkpoint import make_tiny_checkpoint
from support.tiny_training import tiny_lists, tiny_trainable

LISTS = tiny_lists(12, seed=5)
RANKING = RankingLossConfig()


def pair_loss(scores: list[torch.Tensor]) -> float:
    """RankNet over all lists, by a loop over pairs."""
    means = []
    for candidates, found in zip(LISTS, scores, strict=True):
        pairs = [
            functional.softplus((found[j] - found[i]) / RANKING.temperature)
            for i, better in enumerate(candidates.labels)
            for j, worse in enumerate(candidates.labels)
            if better > worse
        ]
        means.append(torch.stack(pairs).mean())
    return torch.stack(means).mean().item()


@pytest.mark.parametrize("slot", [True, False], ids=["query-slot", "plain"])
def test_the_model_starts_with_what_the_map_has_learned(slot: bool, tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "tiny", query_residual=True, residual_gate=0.5)
    # Inputs of this size make a state its vector with context, and a penalty this small lets P_out give them back.
    fusion = {
        "input_scale": 1e4,
        "query_slot": slot,
        "projector_start": "ranking",
        "projector_lists": 1600,
        "projector_ridge": 1e-6,
    }
    model, tokenizers = tiny_trainable(tmp_path / "tiny", {"fusion": fusion})
    table = EmbeddingTable.build(model, tokenizers, LISTS)
    before, length = model.model.p_in.weight.detach().clone(), model.model.p_out.weight.norm().item()
    dense = [
        functional.cosine_similarity(passages[0].float(), query, dim=-1)
        for passages, query in (table.gather([candidates], model.device) for candidates in LISTS)
    ]
    fit = rank_projectors(model, tokenizers, table, lambda position: LISTS[position % len(LISTS)], RANKING)
    assert fit.lists == 1600
    # Every slot of 100 lists, and with a query slot the query's.
    repeated = [LISTS[position % len(LISTS)] for position in range(100)]
    assert fit.states == sum(len(candidates) + slot for candidates in repeated)
    assert fit.cosine > 0.95
    assert torch.equal(model.model.p_in.weight, before)
    assert model.model.p_out.weight.norm().item() == pytest.approx(length, rel=1e-4)
    assert fit.loss < pair_loss(dense) - 0.1
    if slot:  # without one, what the query's state adds is not fitted
        scores = score_lists(model, tokenizers, table, LISTS, lists_per_pass=4)
        assert pair_loss([torch.from_numpy(found) for found in scores]) < pair_loss(dense) - 0.05


def test_an_identity_projector_cannot_be_ranked(tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "tiny", embedding_dim=32, hidden_size=32, query_residual=True)
    model, tokenizers = tiny_trainable(tmp_path / "tiny")
    table = EmbeddingTable.build(model, tokenizers, LISTS)
    with pytest.raises(InvalidInputError, match=r"fusion\.projector_start: ranking needs a linear projector"):
        rank_projectors(model, tokenizers, table, lambda position: LISTS[position % len(LISTS)], RANKING)
