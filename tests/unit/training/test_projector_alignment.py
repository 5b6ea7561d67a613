"""The ridge fit of P_in against NumPy's least squares and against loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from resrank.core.errors import InvalidInputError
from resrank.training.embedding_table import EmbeddingTable
from resrank.training.projector_alignment import align_projector, ridge_projector, word_vectors
from support.tiny_checkpoint import SENTENCES, make_tiny_checkpoint
from support.tiny_training import tiny_lists, tiny_trainable


def test_ridge_is_least_squares_over_penalty_rows() -> None:
    rng = np.random.default_rng(0)
    embeddings, targets = rng.normal(size=(200, 6)), rng.normal(size=(200, 9))
    embeddings[:, 3] *= 30.0
    ridge = 0.05
    # ‖W·e − t‖² + ρ‖W‖² is plain least squares with sqrt(ρ)·I below the data and zeros below the targets.
    rho = ridge * np.mean(embeddings**2) * len(embeddings)
    rows = np.vstack([embeddings, np.sqrt(rho) * np.eye(6)])
    expected = np.linalg.lstsq(rows, np.vstack([targets, np.zeros((6, 9))]), rcond=None)[0].T
    found = ridge_projector(torch.from_numpy(embeddings), torch.from_numpy(targets), ridge)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_word_vectors_are_those_of_a_loop(tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "tiny")
    _, tokenizers = tiny_trainable(tmp_path / "tiny")
    table = torch.randn(tokenizers.words.get_vocab_size(), 5, generator=torch.Generator().manual_seed(0))
    texts = [*SENTENCES, "a <|im_end|> b"]
    rows = [tokenizers.words.encode(text, add_special_tokens=False).ids[:7] for text in texts]
    assert tokenizers.words.token_to_id("<|im_end|>") not in rows[-1]  # markup in a passage is text
    means = []
    for row in rows:
        rarity = [math.log((len(texts) + 1) / (sum(token in other for other in rows) + 1)) for token in row]
        summed = sum(weight * table[token].double() for weight, token in zip(rarity, row, strict=True))
        means.append(summed / sum(rarity))
    expected = torch.stack(means) - torch.stack(means).mean(dim=0)
    found = word_vectors(tokenizers.words, table, texts, max_tokens=7)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_texts_without_a_rare_word_have_no_vector(tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "tiny")
    _, tokenizers = tiny_trainable(tmp_path / "tiny")
    table = torch.randn(tokenizers.words.get_vocab_size(), 5)
    assert not word_vectors(tokenizers.words, table, ["moon", "moon"], max_tokens=7).any()


def test_slots_point_to_their_passages_words_and_keep_their_length(tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "tiny")
    model, tokenizers = tiny_trainable(tmp_path / "tiny", {"fusion": {"projector_start": "ridge"}})
    lists = tiny_lists(40, seed=3)
    table = EmbeddingTable.build(model, tokenizers, lists)
    before = model.model.p_in.weight.detach().clone()
    p_out = model.model.p_out.weight.detach().clone()
    fit = align_projector(model, tokenizers, table, lists, seed=0)
    after = model.model.p_in.weight.detach()
    assert fit.passages == len(table.passages)
    texts = [passage.encoder_text for candidates in lists for passage in candidates.passages]
    vectors = torch.cat([table.passages[table.passage_rows(candidates)] for candidates in lists]).float()
    words = model.backbone("reranker").get_input_embeddings().weight.detach()
    targets = word_vectors(tokenizers.words, words, texts, max_tokens=64).float()
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(vectors @ after.T, targets).mean().item() == pytest.approx(fit.cosine, abs=1e-5)
    assert fit.cosine > cosine(vectors @ before.T, targets).mean().item() + 0.3
    assert 0 < fit.explained < 1
    lengths = [(vectors @ weight.T).norm(dim=1).mean().item() for weight in (before, after)]
    assert lengths[1] == pytest.approx(lengths[0], rel=1e-4)
    assert torch.equal(model.model.p_out.weight, p_out)


def test_the_draw_is_bounded_and_follows_the_seed(tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "tiny")
    config = {"fusion": {"projector_start": "ridge", "projector_passages": 30}}
    lists = tiny_lists(40, seed=3)
    weights = []
    for seed in (0, 0, 1):
        model, tokenizers = tiny_trainable(tmp_path / "tiny", config)
        fit = align_projector(model, tokenizers, EmbeddingTable.build(model, tokenizers, lists), lists, seed=seed)
        assert fit.passages == 30
        weights.append(model.model.p_in.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_identity_projector_cannot_be_fitted(tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "tiny", embedding_dim=32, hidden_size=32)
    model, tokenizers = tiny_trainable(tmp_path / "tiny")
    lists = tiny_lists(2)
    with pytest.raises(InvalidInputError, match=r"fusion\.projector_start: ridge needs a linear projector"):
        align_projector(model, tokenizers, EmbeddingTable.build(model, tokenizers, lists), lists, seed=0)
