"""All records of one moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest

from resrank.core.errors import RetrievalError
from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.records import RecordBatch

OpenStore = Callable[..., LocalVectorStore]
BatchOf = Callable[..., RecordBatch]


def test_what_is_written_meanwhile_is_not_in_it(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store()
    first = batch_of([f"{number:03}" for number in range(600)])
    store.upsert(first)
    with closing(store.export()) as export:
        batches = [next(export)]
        store.upsert(batch_of([f"{number:03}" for number in range(300, 900)], seed=1, text="another"))
        store.delete(["599"])
        batches += export
    assert [len(batch.records) for batch in batches] == [256, 256, 88]
    assert tuple(record for batch in batches for record in batch.records) == first.records
    assert np.concatenate([batch.vectors for batch in batches]).tobytes() == first.vectors.tobytes()
    assert {batch.encoder for batch in batches} == {first.encoder}
    assert sum(len(batch.records) for batch in store.export()) == 899


def test_an_empty_store_has_none(open_store: OpenStore) -> None:
    assert list(open_store().export()) == []


def test_a_damaged_record_is_named_and_ends_it(open_store: OpenStore, batch_of: BatchOf) -> None:
    store = open_store()
    store.upsert(batch_of(["a", "b"]))
    with closing(sqlite3.connect(store.describe().path + "/store.sqlite3")) as connection, connection:
        connection.execute("UPDATE vectors SET vector = zeroblob(16) WHERE key = 2")
    with pytest.raises(RetrievalError, match="the vector of record 'b' is damaged"):
        list(store.export())
