"""Gradients of chunked passes against those of plain passes, with and without dropout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from resrank.training.batches import TextChunk, Tokenizers, equal_chunks
from resrank.training.gradient_cache import CachedEncoding
from resrank.training.stage_config import EncoderAlignmentConfig
from resrank.training.trainable import TrainableResRank
from support.tiny_checkpoint import SENTENCES, make_tiny_checkpoint
from support.tiny_training import tiny_trainable

TEXTS = [*SENTENCES, *(sentence[: 3 + 5 * index] for index, sentence in enumerate(SENTENCES))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    make_tiny_checkpoint(folder)
    return folder


def trained_encoder(folder: Path, *, dropout: bool) -> tuple[TrainableResRank, Tokenizers]:
    model, tokenizers = tiny_trainable(folder, {"encoder": {"mode": "full", "dropout": True}})
    model.parameter_groups(EncoderAlignmentConfig().groups)
    model.train(dropout)
    return model, tokenizers


def nonlinear_loss(embeddings: Tensor) -> Tensor:
    """Couples all texts, so that a chunk's gradient depends on the other chunks."""
    return torch.logsumexp(embeddings @ embeddings.T / 0.1, dim=1).mean() + (embeddings[0] - embeddings[-1]).abs().sum()


def gradients(model: TrainableResRank) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def plain(model: TrainableResRank, chunks: list[TextChunk]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Every chunk with its graph, in the same order and from the same generator state."""
    torch.manual_seed(7)
    outputs = torch.cat([model("encode", chunk.input_ids, chunk.attention_mask) for chunk in chunks])
    embeddings = outputs[torch.argsort(torch.cat([chunk.rows for chunk in chunks]))]
    state = torch.get_rng_state()
    nonlinear_loss(embeddings).backward()
    return embeddings.detach(), gradients(model), state


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (4, 0), (4, 2), (4, 9)])
def test_chunks_with_dropout_give_the_plain_gradients(folder: Path, count: int, kept: int) -> None:
    model, tokenizers = trained_encoder(folder, dropout=True)
    chunks = equal_chunks(tokenizers.passages, TEXTS, count, model.device)
    assert len(chunks) == count
    embeddings, expected, state = plain(model, chunks)
    torch.manual_seed(8)
    model.eval()
    calm = CachedEncoding(lambda ids, mask: model("encode", ids, mask), chunks, trained=False, kept=0)
    assert not torch.allclose(calm.embeddings, embeddings, atol=1e-3)  # dropout was at work
    model.train()

    torch.manual_seed(7)
    encoding = CachedEncoding(lambda ids, mask: model("encode", ids, mask), chunks, trained=True, kept=kept)
    torch.testing.assert_close(encoding.embeddings, embeddings)
    nonlinear_loss(encoding.embeddings).backward()
    encoding.backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    assert torch.equal(torch.get_rng_state(), state)  # the second passes drew nothing that later steps would miss


def test_chunks_without_dropout_give_the_gradients_of_one_batch(folder: Path) -> None:
    model, tokenizers = trained_encoder(folder, dropout=False)
    (whole,) = equal_chunks(tokenizers.passages, TEXTS, 1, model.device)
    _, expected, _ = plain(model, [whole])
    encoding = CachedEncoding(
        lambda ids, mask: model("encode", ids, mask),
        equal_chunks(tokenizers.passages, TEXTS, 3, model.device),
        trained=True,
        kept=1,
    )
    nonlinear_loss(encoding.embeddings).backward()
    encoding.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3, msg=name)


def test_chunks_that_fill_up_add_nothing(folder: Path) -> None:
    model, tokenizers = trained_encoder(folder, dropout=False)
    chunks = equal_chunks(tokenizers.passages, TEXTS[:2], 4, model.device)
    assert sorted(len(chunk.rows) for chunk in chunks) == [0, 0, 1, 1]
    calls = []

    def encode(ids: Tensor, mask: Tensor) -> Tensor:
        calls.append(len(ids))
        found: Tensor = model("encode", ids, mask)
        return found

    encoding = CachedEncoding(encode, chunks, trained=True, kept=1)
    assert encoding.embeddings.shape[0] == 2
    nonlinear_loss(encoding.embeddings).backward()
    encoding.backward()
    assert len(calls) == 4 + 3  # every process makes as many passes as the one with the most texts
    found = gradients(model)
    _, expected, _ = plain(model, equal_chunks(tokenizers.passages, TEXTS[:2], 2, model.device))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_an_encoder_that_is_not_trained_runs_once_and_gets_nothing(folder: Path) -> None:
    model, tokenizers = trained_encoder(folder, dropout=False)
    chunks = equal_chunks(tokenizers.passages, TEXTS, 2, model.device)
    encoding = CachedEncoding(lambda ids, mask: model("encode", ids, mask), chunks, trained=False, kept=1)
    assert not encoding.embeddings.requires_grad
    encoding.backward()
    assert not gradients(model)
