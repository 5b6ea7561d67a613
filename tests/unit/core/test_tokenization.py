"""Text to ids: limits, frames, and control tokens in user text as plain text, against the tokenizer's own pieces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from resrank.core.checkpoint import CheckpointSpec
from resrank.core.errors import CheckpointError, InvalidInputError, Place
from resrank.core.tokenization import EncoderTokenizer, PromptTokenizer, decode_text, load_tokenizer
from support.tiny_checkpoint import byte_level_tokenizer, make_tiny_checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CheckpointSpec]:
    folder = tmp_path_factory.mktemp("tokenization") / "checkpoint"
    return folder, make_tiny_checkpoint(folder, query_instruction="find: ")


def untouched(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_an_encoder_row_is_frame_instruction_and_text_padded_on_the_right(made: tuple[Path, CheckpointSpec]) -> None:
    folder, spec = made
    batch = EncoderTokenizer(folder / "encoder", spec.encoder, for_queries=True).encode([b"Which river?", b"moon"])
    rows = [untouched(folder / "encoder").encode(f"find: {text}").ids for text in ("Which river?", "moon")]
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64
    for ids, mask, expected in zip(batch.input_ids.tolist(), batch.attention_mask.tolist(), rows, strict=True):
        assert ids == expected + [0] * (len(ids) - len(expected))
        assert mask == [1] * len(expected) + [0] * (len(ids) - len(expected))


@pytest.mark.parametrize("for_queries", [True, False])
def test_the_token_limit_counts_the_whole_row(made: tuple[Path, CheckpointSpec], for_queries: bool) -> None:
    folder, spec = made
    tokenizer = EncoderTokenizer(folder / "encoder", spec.encoder, for_queries=for_queries)
    instruction = len(untouched(folder / "encoder").encode("find:", add_special_tokens=False).ids) * for_queries
    limit = 32 if for_queries else 64
    fits = limit - 2 - instruction  # [CLS] and [SEP]
    assert tokenizer.encode([b"moon " * fits]).input_ids.shape == (1, limit)
    with pytest.raises(InvalidInputError) as raised:
        tokenizer.encode([b"moon", b"moon " * (fits + 1)])
    assert raised.value.problem == "too many tokens"
    assert raised.value.field == ("QUERY[1]" if for_queries else "TEXT[1]")
    assert (raised.value.limit, raised.value.value) == (str(limit), str(limit + 1))
    cut = tokenizer.encode([b"moon " * (fits + 1)], truncate=True)
    assert cut.input_ids.tolist() == tokenizer.encode([b"moon " * fits]).input_ids.tolist()


def test_the_prompts_own_control_tokens_are_ids_and_the_queries_are_text(made: tuple[Path, CheckpointSpec]) -> None:
    folder, spec = made
    tokenizer = PromptTokenizer(folder / "reranker", spec.reranker)
    end = untouched(folder / "reranker").token_to_id("<|im_end|>")
    assert end in tokenizer.layout.before_query
    assert tokenizer.layout.eos_id == end
    (ids,) = tokenizer.encode([b"a<|im_end|>b"])
    assert end not in ids
    assert untouched(folder / "reranker").decode(ids, skip_special_tokens=False) == "a<|im_end|>b"


def save_with_added_tokens(folder: Path, **tokens: bool) -> Tokenizer:
    """A byte-level tokenizer with added tokens, each special or not."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens([AddedToken(content, normalized=False) for content, special in tokens.items() if not special])
    tokenizer.add_special_tokens([content for content, special in tokens.items() if special])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.mark.parametrize("content", ["<think>", "</think>", "<tool_call>", "<|fim_prefix|>", "[INST]"])
def test_control_tokens_that_the_file_does_not_call_special_are_plain_text_too(tmp_path: Path, content: str) -> None:
    """Qwen3 adds ``<think>`` and its like with ``special: false``."""
    id_ = save_with_added_tokens(tmp_path, **{content: False}).token_to_id(content)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(f"a {content}").ids[-1] == id_, "a prompt written by the checkpoint may use it"
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(f"a {content} b").ids
    assert id_ not in ids
    assert tokenizer.decode(ids) == f"a {content} b"


@pytest.mark.parametrize("content", ["    ", "\n\n", "SARS-CoV-2", "1 < 2"])
def test_added_words_and_white_space_stay_tokens(tmp_path: Path, content: str) -> None:
    id_ = save_with_added_tokens(tmp_path, **{content: False}).token_to_id(content)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.encode_special_tokens = True
    assert id_ in tokenizer.encode(f"a{content}b").ids


def test_markup_of_the_models_own_vocabulary_stays_a_token(tmp_path: Path) -> None:
    """Gemma's ``<table>`` was learned as a piece of text."""
    fields = json.loads(byte_level_tokenizer().to_str())
    fields["model"]["vocab"]["<table>"] = id_ = len(fields["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_tokens(["<table>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.encode_special_tokens = True
    assert id_ in tokenizer.encode("a <table>").ids


def test_bytes_are_counted_before_they_are_decoded() -> None:
    with pytest.raises(InvalidInputError, match=r"TEXT: too many bytes \(limit 4, got 5\)"):
        decode_text(b"\xff\xff\xff\xff\xff", Place("TEXT"), max_bytes=4)
    assert decode_text("ö\0".encode(), Place("TEXT"), max_bytes=4) == "ö\0"


def test_an_instruction_that_fills_the_row_is_refused(made: tuple[Path, CheckpointSpec]) -> None:
    folder, spec = made
    encoder = spec.encoder.model_copy(update={"query_instruction": "moon " * 30})
    with pytest.raises(CheckpointError, match="32 tokens leave no room beside the instruction"):
        EncoderTokenizer(folder / "encoder", encoder, for_queries=True)
