from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from resrank.benchmarks.indexing import sentence_transformer
from resrank.benchmarks.measurement import BenchmarkError
from resrank.benchmarks.passage_texts import PassageTexts
from resrank.benchmarks.text_models import ListReader, PairScorer, write_cross_encoder, write_sentence_transformer
from resrank.core.checkpoint import read_spec
from support.tiny_checkpoint import SENTENCES, make_tiny_checkpoint


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    checkpoint = tmp_path_factory.mktemp("text-models") / "checkpoint"
    make_tiny_checkpoint(checkpoint)
    return SimpleNamespace(checkpoint=checkpoint, spec=read_spec(checkpoint))


def test_the_encoder_written_for_others_gives_the_vectors_of_the_modules_put_together(
    deployment: SimpleNamespace, tmp_path: Path
) -> None:
    write_sentence_transformer(deployment, tmp_path / "encoder")
    read = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    expected = sentence_transformer(deployment).encode(list(SENTENCES))
    np.testing.assert_allclose(read.encode(list(SENTENCES)), expected, atol=1e-6)


def test_the_cross_encoder_scores_each_pair_on_its_own(deployment: SimpleNamespace, tmp_path: Path) -> None:
    write_cross_encoder(deployment, tmp_path / "cross")
    assert (tmp_path / "cross" / "tokenizer.json").is_file()
    config = json.loads((tmp_path / "cross" / "config.json").read_text())
    # MiniLM-L6's, whatever the checkpoint's own encoder
    assert (config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]) == (6, 384, 1536)
    scorer = PairScorer(tmp_path / "cross", 64)
    together = scorer.scores("which river?", SENTENCES)
    alone = [scorer.scores("which river?", [text])[0] for text in SENTENCES]
    assert together.shape == (len(SENTENCES),)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_list_reader_reads_every_passage_in_one_sequence(deployment: SimpleNamespace) -> None:
    reader = ListReader(deployment)
    assert reader.max_positions == 1024
    assert reader.tokens("q", SENTENCES[:2]) < reader.tokens("q", SENTENCES)
    first = reader.read("q", SENTENCES)
    assert first.shape == (48,)
    # The state behind the list depends on its first passage: it was read, not only encoded beside the others.
    assert not np.allclose(first, reader.read("q", ["Another one.", *SENTENCES[1:]]))


def test_passages_have_the_wanted_number_of_tokens_and_follow_each_other(
    deployment: SimpleNamespace, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"_id": str(row), "text": text}) + "\n" for row, text in enumerate(SENTENCES * 4))
    )
    texts = PassageTexts(deployment, corpus)
    cut = texts.of_length(7, 5)
    assert " ".join(SENTENCES * 4).replace(" ", "").startswith("".join(cut).replace(" ", ""))
    with pytest.raises(BenchmarkError, match="need a corpus of 500000"):
        texts.of_length(500, 1000)
