"""Synthetic lists of an index: what a store holds is what is trained on, while it is being served."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.records import Encoder, Record, RecordBatch
from resrank.stack.training_index import passages_at
from resrank.training.lists import TrainingPassage


def test_an_index_gives_its_passages_while_it_is_open(tmp_path: Path) -> None:
    records = (Record("a", "title", "text"), Record("b", " ", "\n"), Record("c", "", "text alone"), Record("d", "", ""))
    batch = RecordBatch(Encoder("a" * 64, 2), records, np.ones((4, 2), np.float16))
    with closing(LocalVectorStore.open(tmp_path)) as store:
        store.upsert(batch)
        store.delete(["a"])
        assert list(passages_at(tmp_path)) == [TrainingPassage("", "text alone")]
        store.upsert(RecordBatch(batch.encoder, records[:1], batch.vectors[:1]))
        assert list(passages_at(tmp_path)) == [TrainingPassage("", "text alone"), TrainingPassage("title", "text")]


def test_a_corpus_file_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "a", "title": "title", "text": "text"}\n{"_id": "b", "text": " "}\n')
    assert list(passages_at(path)) == [TrainingPassage("title", "text")]
