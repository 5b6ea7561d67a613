"""The table of embeddings against texts encoded one at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from resrank.core.errors import InvalidInputError
from resrank.training.batches import Tokenizers, token_budget_chunks
from resrank.training.embedding_table import EmbeddingTable, encode_texts
from resrank.training.lists import CandidateList, TrainingPassage
from resrank.training.trainable import TrainableResRank
from resrank.training.vector_cache import VectorCache
from support.tiny_checkpoint import make_tiny_checkpoint
from support.tiny_training import tiny_lists, tiny_trainable

LISTS = tiny_lists(4)


@pytest.fixture(scope="module")
def trainable(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainableResRank, Tokenizers]:
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    make_tiny_checkpoint(folder, query_instruction="query: ", passage_instruction="passage: ")
    compute = {"precision": "fp32", "encode_batch_tokens": 300}
    return tiny_trainable(folder, {"compute": compute, "encoder": {"dropout": True}})


def one_at_a_time(model: TrainableResRank, tokenizer: object, texts: list[str]) -> torch.Tensor:
    model.eval()
    rows = [tokenizer.encode([text.encode()], truncate=True) for text in texts]  # type: ignore[attr-defined]
    with torch.no_grad():
        return torch.cat(
            [model.model.encode(torch.from_numpy(r.input_ids), torch.from_numpy(r.attention_mask)) for r in rows]
        )


def test_every_text_has_its_own_vector_in_the_stored_precision(
    trainable: tuple[TrainableResRank, Tokenizers],
) -> None:
    model, tokenizers = trainable
    table = EmbeddingTable.build(model, tokenizers, [*LISTS, *LISTS])
    assert table.passages.dtype == torch.float16
    assert table.queries.dtype == torch.float32
    assert len(table.queries) == len(LISTS)
    assert len(table.passages) == sum(len(candidates) for candidates in LISTS)
    candidates, queries = table.gather(LISTS, model.device)
    for row, candidate_list in enumerate(LISTS):
        texts = [passage.encoder_text for passage in candidate_list.passages]
        count = len(texts)
        expected = one_at_a_time(model, tokenizers.passages, texts)
        torch.testing.assert_close(candidates[row, :count].float(), expected, atol=2**-11, rtol=0)
        assert (candidates[row, count:] == candidates[row, count - 1]).all()  # padding as pad_candidates makes it
        expected = one_at_a_time(model, tokenizers.queries, [candidate_list.query])
        torch.testing.assert_close(queries[row], expected[0], atol=1e-5, rtol=1e-4)


def test_dropout_is_off_while_encoding_and_the_mode_comes_back(
    trainable: tuple[TrainableResRank, Tokenizers],
) -> None:
    model, tokenizers = trainable
    model.train()
    first, second = (EmbeddingTable.build(model, tokenizers, LISTS) for _ in range(2))
    assert torch.equal(first.passages, second.passages)
    assert model.training
    assert model.backbone("encoder").training


def test_progress_counts_every_text_up_to_all(trainable: tuple[TrainableResRank, Tokenizers]) -> None:
    model, tokenizers = trainable
    seen: list[tuple[int, int]] = []
    table = EmbeddingTable.build(model, tokenizers, LISTS, progress=lambda done, of: seen.append((done, of)))
    kinds = [[done for done, of in seen if of == len(texts)] for texts in (table.passages, table.queries)]
    assert sum(map(len, kinds)) == len(seen)
    for texts, counts in zip((table.passages, table.queries), kinds, strict=True):
        assert counts == sorted(set(counts))
        assert counts[-1] == len(texts)
    assert len(seen) > 2  # a pass has no more than 300 tokens


def test_a_question_that_is_a_vector_stands_as_it_is(trainable: tuple[TrainableResRank, Tokenizers]) -> None:
    model, tokenizers = trainable
    vectors = np.random.default_rng(0).normal(size=(2, model.spec.encoder.embedding_dim)).astype("<f4")
    asked = [
        replace(candidates, query="", query_vector=vector.tobytes())
        for candidates, vector in zip(LISTS, vectors, strict=False)
    ]
    table = EmbeddingTable.build(model, tokenizers, [asked[0], *LISTS[2:], asked[1], asked[0]])
    assert len(table.queries) == 4
    _, queries = table.gather([*asked, LISTS[3]], model.device)
    assert torch.equal(queries[:2], torch.from_numpy(vectors))
    expected = one_at_a_time(model, tokenizers.queries, [LISTS[3].query])
    torch.testing.assert_close(queries[2], expected[0], atol=1e-5, rtol=1e-4)


def test_vectors_of_an_encoder_that_stays_are_taken_from_the_cache(
    trainable: tuple[TrainableResRank, Tokenizers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizers = trainable
    cache = VectorCache(tmp_path, "tiny")
    first = EmbeddingTable.build(model, tokenizers, LISTS, cache=cache)
    monkeypatch.setattr(model, "forward", None)  # nothing is encoded
    second = EmbeddingTable.build(model, tokenizers, LISTS[::-1], cache=cache)
    for one, other in zip(first.gather(LISTS, model.device), second.gather(LISTS, model.device), strict=True):
        assert torch.equal(one, other)


def test_a_text_that_was_not_encoded_is_a_key_error(trainable: tuple[TrainableResRank, Tokenizers]) -> None:
    model, tokenizers = trainable
    table = EmbeddingTable.build(model, tokenizers, LISTS[:1])
    with pytest.raises(KeyError):
        table.passage_rows(LISTS[1])


def test_a_vector_that_is_not_finite_is_refused_with_its_text(
    trainable: tuple[TrainableResRank, Tokenizers],
) -> None:
    model, tokenizers = trainable
    text = "Paris"
    word = int(tokenizers.passages.encode([text.encode()]).input_ids[0, -2])
    weights = model.get_parameter("model.encoder.embeddings.word_embeddings.weight")
    kept = weights[word].clone()
    with torch.no_grad():
        weights[word] = float("nan")
    try:
        with pytest.raises(InvalidInputError, match=r"encoder: gives no finite torch\.float16 vector for 'Paris'"):
            encode_texts(model, tokenizers.passages, ["moon", text], dtype=torch.float16)
    finally:
        with torch.no_grad():
            weights[word] = kept


def test_chunks_hold_each_text_once_within_the_budget(trainable: tuple[TrainableResRank, Tokenizers]) -> None:
    _, tokenizers = trainable
    rng = np.random.default_rng(0)
    texts = ["moon " * int(count) for count in rng.integers(1, 60, size=200)]
    chunks = list(token_budget_chunks(tokenizers.passages, texts, 256, torch.device("cpu")))
    assert sorted(torch.cat([chunk.rows for chunk in chunks]).tolist()) == list(range(200))
    tokens = sum(chunk.input_ids.numel() for chunk in chunks)
    for chunk in chunks:
        assert chunk.input_ids.numel() <= 256
        assert chunk.attention_mask[:, -1].any()  # no wider than its longest text
        expected = tokenizers.passages.encode([texts[row].encode() for row in chunk.rows.tolist()], truncate=True)
        np.testing.assert_array_equal(chunk.input_ids.numpy(), expected.input_ids)
        np.testing.assert_array_equal(chunk.attention_mask.numpy(), expected.attention_mask)
    assert tokens < 1.2 * sum(int(chunk.attention_mask.sum()) for chunk in chunks)  # texts of like length together
    (alone,) = token_budget_chunks(tokenizers.passages, ["moon " * 50], 10, torch.device("cpu"))
    assert alone.input_ids.numel() > 10


def test_titles_and_texts_that_join_to_the_same_text_share_a_row(
    trainable: tuple[TrainableResRank, Tokenizers],
) -> None:
    model, tokenizers = trainable
    first = LISTS[0]
    split = CandidateList(
        "q",
        first.query,
        (TrainingPassage("on the", "moon"), TrainingPassage("on", "the moon")),
        (1.0, 0.0),
        first.kind,
        "tiny",
    )
    table = EmbeddingTable.build(model, tokenizers, [split])
    assert table.passage_rows(split).tolist() == [0, 0]
