"""Qwen3-Embedding's layout: published code pads on the left and takes the last column, serving pads on the right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, processors
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from resrank.core.checkpoint import Pooling
from resrank.core.tokenization import EncoderTokenizer
from resrank.export.initialize import InitOptions, initialize
from resrank.model.modeling import ResRankModel
from resrank.model.quiet import quiet_transformers
from support.tiny_checkpoint import SENTENCES
from support.tiny_families import make_backbone

INSTRUCTION = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


@dataclass(frozen=True)
class Layout:
    source: Path
    checkpoint: Path
    model: ResRankModel


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A tiny backbone with the files that Qwen/Qwen3-Embedding-0.6B comes with."""
    folder = tmp_path_factory.mktemp("qwen3-embedding")
    source = folder / "source"
    make_backbone("qwen3", source)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", pair="$A <|endoftext|> $B <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    prompts = {"query": INSTRUCTION, "document": ""}
    (source / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    initialize(source, source, folder / "checkpoint", InitOptions(max_passage_tokens=256, max_query_tokens=256))
    return Layout(source, folder / "checkpoint", ResRankModel.from_checkpoint(folder / "checkpoint"))


def published(layout: Layout, texts: tuple[str, ...], *, positions: bool) -> Tensor:
    """What the model's card computes: pad on the left, take the last column, divide by the length.

    Args:
        layout: Whose source.
        texts: As they are tokenized.
        positions: Whether positions are counted from each row's first token; the card leaves them to transformers,
            which counts padding too: rotary embeddings see differences alone.
    """
    tokenizer = AutoTokenizer.from_pretrained(layout.source, padding_side="left")
    with quiet_transformers():
        model = AutoModel.from_pretrained(layout.source)
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    mask = batch["attention_mask"]
    assert mask[:, -1].all()
    assert not mask.all()
    given = {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)} if positions else {}
    hidden = model(input_ids=batch["input_ids"], attention_mask=mask, **given).last_hidden_state
    return functional.normalize(hidden[:, -1], dim=-1)


def test_the_checkpoint_follows_the_published_files(layout: Layout) -> None:
    encoder = layout.model.spec.encoder
    assert encoder.pooling is Pooling.LAST
    assert (encoder.query_instruction, encoder.passage_instruction) == (INSTRUCTION, "")
    assert not encoder.append_eos  # the tokenizer's own template ends every text


@pytest.mark.parametrize("positions", [False, True], ids=["card", "counted"])
@pytest.mark.parametrize("exporting", [False, True], ids=["stock", "exported"])
def test_left_and_right_padding_agree(layout: Layout, positions: bool, exporting: bool) -> None:
    tokenizer = EncoderTokenizer(layout.checkpoint / "encoder", layout.model.spec.encoder, for_queries=False)
    rows = tokenizer.encode([text.encode() for text in SENTENCES])
    ids, mask = torch.from_numpy(rows.input_ids), torch.from_numpy(rows.attention_mask)
    with torch.inference_mode():
        reference = published(layout, SENTENCES, positions=positions)
        if exporting:
            with layout.model.exporting():
                found = layout.model.encode(ids, mask)
        else:
            found = layout.model.encode(ids, mask)
    torch.testing.assert_close(found, reference, atol=2e-5, rtol=1e-4)


def test_queries_carry_the_instruction(layout: Layout) -> None:
    tokenizer = EncoderTokenizer(layout.checkpoint / "encoder", layout.model.spec.encoder, for_queries=True)
    rows = tokenizer.encode([text.encode() for text in SENTENCES[:2]])
    with torch.inference_mode():
        found = layout.model.encode(torch.from_numpy(rows.input_ids), torch.from_numpy(rows.attention_mask))
        reference = published(layout, tuple(INSTRUCTION + text for text in SENTENCES[:2]), positions=False)
    torch.testing.assert_close(found, reference, atol=2e-5, rtol=1e-4)
