"""Vectors that lie in a mapped snapshot and behind it: what is found among them, and that damage is told."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resrank.core.errors import RetrievalError
from resrank.core.search import SearchMode
from resrank.retrieval.local import integrity, store
from resrank.retrieval.local.dense import FaissDenseIndex
from resrank.retrieval.local.kept_rows import KeptRows
from resrank.retrieval.local.schema import STORE_FILE
from resrank.retrieval.local.snapshot import SNAPSHOT_FILE
from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.local.vector_segment import VectorSegment
from resrank.retrieval.local.vector_table import VectorTable
from resrank.retrieval.records import Encoder, FloatVector, HalfMatrix, Record, RecordBatch, SearchQuery

OpenStore = Callable[..., LocalVectorStore]
D = 16


def unit_rows(count: int, seed: int, spread: float) -> HalfMatrix:
    """Of length 1 but for fp16: around one direction, so that many differ by less than fp16's rounding."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=D) + spread * rng.normal(size=(count, D))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def unit(vector: np.ndarray) -> FloatVector:
    wide = vector.astype(np.float64)
    return (wide / np.linalg.norm(wide)).astype(np.float32)


@given(data=st.data())
@settings(max_examples=60)
def test_what_a_scan_rounds_away_is_compared_exactly(data: st.DataObject) -> None:
    """Against fp64, with a base and a tail of either kind of length, with tombstones and filters."""
    spread = data.draw(st.sampled_from([0.0, 1e-4, 1e-3, 1.0]))
    stretched = [data.draw(st.sampled_from([1.0, 3.0])) for _ in range(3)]
    counts = [data.draw(st.integers(0, 300)), data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50))]
    parts = [unit_rows(count, 3, spread) * np.float16(s) for count, s in zip(counts, stretched, strict=True)]
    vectors = np.concatenate(parts)
    keys = np.arange(1, len(vectors) + 1)
    dense = FaissDenseIndex.build("Flat", "", VectorTable(keys[: counts[0]], VectorSegment.of(parts[0])))
    for start, end in ((counts[0], sum(counts[:2])), (sum(counts[:2]), len(vectors))):
        dense.apply(np.empty(0, np.int64), keys[start:end], vectors[start:end])
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    removed = keys[rng.random(len(keys)) < data.draw(st.sampled_from([0.0, 0.3]))]
    dense.apply(removed, np.empty(0, np.int64), np.empty((0, D), np.float16))
    living = np.setdiff1d(keys, removed)
    kept = None
    if data.draw(st.booleans()):
        mask = dense.table.alive & (rng.random(len(keys)) < 0.5)
        kept, living = KeptRows(mask, keys[mask]), keys[mask]
    query = unit(rng.normal(size=D) if data.draw(st.booleans()) else vectors[-1])
    k = data.draw(st.integers(1, 120))
    found, cosines = dense.search(query, k, kept)
    wide = vectors.astype(np.float64)
    true = (wide @ query.astype(np.float64) / np.linalg.norm(wide, axis=1))[living - 1]
    assert len(set(found.tolist())) == len(found) == min(k, len(living))
    np.testing.assert_allclose(cosines, np.sort(true)[::-1][:k], atol=3e-7)
    assert np.isin(found, living).all()
    assert found.tolist() == found[np.lexsort((found, -cosines))].tolist(), "best first, ties by key"
    assert dense.cosines(query, found).tolist() == cosines.tolist()
    longer, _ = dense.search(query, k + 50, kept)
    assert longer[: len(found)].tolist() == found.tolist()


def batch(count: int, seed: int = 0, first: int = 0) -> RecordBatch:
    records = tuple(Record(f"id-{i}", "", f"walrus {i} " * 20) for i in range(first, first + count))
    return RecordBatch(Encoder("a" * 64, D), records, unit_rows(count, seed, 1.0))


def query(vector: np.ndarray, k: int = 5) -> SearchQuery:
    return SearchQuery(SearchMode.DENSE, k, embedding=unit(vector), include_embeddings=True)


def is_mapped(opened: LocalVectorStore) -> bool:
    assert opened._dense is not None
    return not opened._dense.table.base.vectors.flags.writeable


@pytest.mark.parametrize("kind", ["Flat", "HNSW8"])
def test_vectors_are_mapped_once_they_are_in_a_snapshot(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(store, "_SNAPSHOT_ROWS", 100)
    opened, first, second = open_store(dense_index=kind), batch(200), batch(50, 1, first=200)
    opened.upsert(first)
    assert not is_mapped(opened)
    with monkeypatch.context() as patched:  # it is in memory: to read it again would take as much once more
        patched.setattr("faiss.PyCallbackIOReader", lambda read: pytest.fail("the index was read back"))
        opened.maintain()
    assert is_mapped(opened)
    opened.upsert(second)
    opened.delete(["id-7"])
    for _ in range(2):
        for held in (first, second):
            hits = opened.search(query(held.vectors[3]))
            assert hits.ids[0] == held.records[3].id
            assert hits.vectors is not None
            assert hits.vectors[0].tobytes() == held.vectors[3].tobytes()
        assert "id-7" not in opened.search(query(first.vectors[7])).ids
        opened.close()
        opened = open_store(dense_index=kind)
        assert is_mapped(opened)


def test_a_vector_that_changes_in_the_mapped_file_is_not_given_out(open_store: OpenStore, tmp_path: Path) -> None:
    opened, held = open_store(), batch(200)
    opened.upsert(held)
    opened.close()
    opened = open_store()
    path = tmp_path / "index" / SNAPSHOT_FILE
    place = path.read_bytes().index(held.vectors[3].tobytes())
    with path.open("r+b") as file:
        file.seek(place + 2 * D - 1)
        file.write(b"\x00")
    with pytest.raises(RetrievalError, match="the vector of record 4 is damaged in the index"):
        opened.search(query(held.vectors[3], 200))


def damage_structure(folder: Path) -> None:
    with sqlite3.connect(folder / STORE_FILE) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'vectors'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with (folder / STORE_FILE).open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(bytes(size))


def test_a_large_store_is_checked_while_it_is_served(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(integrity, "CHECKED_FIRST_BYTES", 0)
    opened, held = open_store(), batch(200)
    assert opened._check is not None
    opened._check.join()
    opened.upsert(held)
    opened.close()
    caplog.set_level(logging.INFO)
    caplog.clear()
    opened = open_store()
    assert opened._check is not None
    opened._check.join()
    assert [record.message for record in caplog.records if record.name.endswith("integrity")] == ["index checked"]
    assert opened.search(query(held.vectors[3])).ids[0] == "id-3"
    opened.close()

    damage_structure(tmp_path / "index")
    opened = open_store()  # the snapshot has the vectors
    assert opened._check is not None
    opened._check.join()
    for ask in (
        lambda: opened.search(query(held.vectors[3])),
        lambda: opened.upsert(batch(1)),
        lambda: opened.delete(["id-1"]),
        lambda: opened.get(["id-1"], include_texts=True, include_embeddings=False),
        lambda: opened.list_ids("", 3),
        lambda: opened.word_scores("walrus", ["id-1"]),
        opened.export,
    ):
        with pytest.raises(RetrievalError, match=r"is corrupt .*restore it or build the index anew"):
            ask()


def test_a_damaged_vector_of_a_large_store_is_told_and_never_given_out(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(integrity, "CHECKED_FIRST_BYTES", 0)
    opened, held = open_store(), batch(200)
    opened.upsert(held)
    opened.close()
    with sqlite3.connect(tmp_path / "index" / STORE_FILE) as connection:
        connection.execute("UPDATE vectors SET vector = ? WHERE key = 4", (np.ones(D, np.float16).tobytes(),))
    connection.close()
    opened = open_store()
    assert opened._check is not None
    opened._check.join()
    assert "the vector of record 4 is damaged" in caplog.text
    hits = opened.search(query(held.vectors[3]))
    assert hits.vectors is not None
    assert (hits.ids[0], hits.vectors[0].tobytes()) == ("id-3", held.vectors[3].tobytes())
    with pytest.raises(RetrievalError, match="the vector of record 'id-3' is damaged"):
        opened.get(["id-3"], include_texts=False, include_embeddings=True)
