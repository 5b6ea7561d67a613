"""The texts of an index can be read while another process, or this one, owns it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from resrank.core.errors import IndexFolderError
from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.local.stored_texts import stored_texts
from resrank.retrieval.records import Encoder, Record, RecordBatch


def batch(*ids: str) -> RecordBatch:
    records = tuple(Record(id_, f"title {id_}", f"text {id_}") for id_ in ids)
    return RecordBatch(Encoder("a" * 64, 2), records, np.ones((len(ids), 2), np.float16))


def test_an_open_index_is_read_as_it_was_at_one_moment(tmp_path: Path) -> None:
    with closing(LocalVectorStore.open(tmp_path)) as store:
        store.upsert(batch("a", "b"))
        texts = stored_texts(tmp_path)
        assert next(texts) == ("title a", "text a")
        store.upsert(batch("c"))
        assert list(texts) == [("title b", "text b")]
        assert len(list(stored_texts(tmp_path))) == 3


def test_what_is_no_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(IndexFolderError, match=r"store\.sqlite3 cannot be read"):
        list(stored_texts(tmp_path))
    with closing(sqlite3.connect(tmp_path / "store.sqlite3")) as other:
        other.execute("CREATE TABLE records(key INTEGER)")
    with pytest.raises(IndexFolderError, match="another program's database"):
        list(stored_texts(tmp_path))
