"""What happens to an index's files, and that nothing of it is served or lost without a word."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resrank.core.errors import IndexFolderError, RetrievalError
from resrank.core.filters import F
from resrank.core.metadata import MetadataValue
from resrank.core.passage import content_sha256
from resrank.core.search import SearchMode
from resrank.retrieval.errors import StoreWriteError
from resrank.retrieval.local import checksums
from resrank.retrieval.local.schema import STORE_FILE
from resrank.retrieval.local.snapshot import SNAPSHOT_FILE
from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.local.verification import verify
from resrank.retrieval.records import Encoder, Record, RecordBatch, SearchQuery

D = 8
ENCODER = Encoder("a" * 64, D)


def batch(count: int = 40, seed: int = 0) -> RecordBatch:
    vectors = np.random.default_rng(seed).normal(size=(count, D)).astype(np.float16)
    records = tuple(Record(f"id-{i}", f"title {i}", f"walrus number {i} " * 5, metadata(i)) for i in range(count))
    return RecordBatch(ENCODER, records, vectors)


def metadata(number: int) -> dict[str, MetadataValue]:
    return {"page": str(number), "year": 2000.0 + number, "tags": ("a", "b")[: number % 3]}


def query(seed: int, mode: SearchMode = SearchMode.DENSE, *, include_texts: bool = True) -> SearchQuery:
    embedding = np.random.default_rng(seed).normal(size=D).astype(np.float32)
    return SearchQuery(
        mode=mode,
        k=10,
        embedding=embedding / np.linalg.norm(embedding),
        text="walrus",
        include_texts=include_texts,
        include_embeddings=True,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with_store(tmp_path / "index", lambda store: store.upsert(batch()))
    return tmp_path / "index"


def with_store(folder: Path, work: Callable[[LocalVectorStore], object]) -> None:
    store = LocalVectorStore.open(folder)
    try:
        work(store)
    finally:
        store.close()


def change(folder: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(folder / STORE_FILE)
    with connection:
        connection.execute(statement, values)
    connection.close()


def test_an_index_that_is_well_verifies_and_is_not_changed(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = verify(folder)
    assert (found.records, found.problems) == (40, ())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_store_without_content_is_refused(folder: Path) -> None:
    (folder / STORE_FILE).write_bytes(b"")
    for _ in range(2):
        with pytest.raises(IndexFolderError, match="is empty, its content was lost"):
            LocalVectorStore.open(folder)
    assert (folder / STORE_FILE).stat().st_size == 0
    assert verify(folder).problems == (f"{folder / STORE_FILE} is empty, its content was lost",)
    (folder / SNAPSHOT_FILE).unlink()
    with pytest.raises(IndexFolderError, match="is empty, its content was lost"):
        LocalVectorStore.open(folder)


def test_a_store_that_was_never_finished_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / f"{STORE_FILE}.new").write_bytes(b"half")
    with_store(tmp_path, lambda store: store.upsert(batch()))
    assert verify(tmp_path).records == 40


def test_a_snapshot_of_another_index_is_not_used(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with_store(other, lambda store: store.upsert(batch(seed=1)))  # the same keys
    shutil.copy(other / SNAPSHOT_FILE, folder / SNAPSHOT_FILE)
    (problem,) = verify(folder).problems
    assert problem.endswith("it is of other vectors than the store's")
    vectors = batch().vectors.astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def search(store: LocalVectorStore) -> None:
        for seed in range(20):
            asked = query(seed)
            assert asked.embedding is not None
            expected = [f"id-{i}" for i in np.argsort(-(vectors @ asked.embedding), kind="stable")[:10]]
            assert store.search(asked).ids == expected

    with_store(folder, search)
    assert verify(folder).problems == ()


@pytest.mark.parametrize("include_texts", [True, False])
@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE records SET id = 'id-x' WHERE id = 'id-3'", "id"),
        ("UPDATE records SET title = 'other' WHERE id = 'id-3'", "text"),
        ("UPDATE records SET text = replace(text, 'walrus', 'walrut') WHERE id = 'id-3'", "text"),
        ("UPDATE checksums SET content = content + 1 WHERE key = 4", "text"),
        ("DELETE FROM checksums WHERE key = 4", "id"),
    ],
)
def test_damaged_content_is_an_error_and_never_an_answer(
    folder: Path, statement: str, what: str, include_texts: bool
) -> None:
    change(folder, statement)
    assert any("record 4" in problem for problem in verify(folder).problems)

    def search(store: LocalVectorStore) -> None:
        everything = SearchQuery(
            mode=SearchMode.LEXICAL, k=40, text="walrus number", include_texts=include_texts, include_embeddings=False
        )
        if what == "text" and not include_texts:
            assert len(store.search(everything).ids) == 40
            return
        with pytest.raises(RetrievalError, match="is damaged in the index: `resrank index verify` lists"):
            store.search(everything)

    if statement.startswith("DELETE"):
        with pytest.raises(IndexFolderError, match="the vector of record 4 is damaged"):
            LocalVectorStore.open(folder)
    else:
        with_store(folder, search)


@pytest.mark.parametrize("column", ["title = 'x'", "text = 'x'", "metadata = '{}'", "metadata = '{'", "id = 'id-40'"])
def test_a_damaged_record_is_not_given_out(folder: Path, column: str) -> None:
    change(folder, f"UPDATE records SET {column} WHERE key = 4")
    id_ = "id-40" if "id =" in column else "id-3"
    assert verify(folder).problems

    def read(store: LocalVectorStore) -> None:
        assert set(store.get(["id-2"], include_texts=True, include_embeddings=True)) == {"id-2"}
        with pytest.raises(RetrievalError, match="is damaged"):
            store.get([id_], include_texts=True, include_embeddings=False)

    with_store(folder, read)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE records SET metadata = replace(metadata, '2003', '2004') WHERE key = 4",
        "UPDATE checksums SET metadata = 7",
    ],
)
def test_damaged_metadata_is_an_error_and_never_an_answer(folder: Path, statement: str) -> None:
    change(folder, statement)
    assert any("record 4 ('id-3'): its title, text, metadata" in problem for problem in verify(folder).problems)

    def search(store: LocalVectorStore) -> None:
        everything = SearchQuery(SearchMode.LEXICAL, 40, text="walrus")
        assert len(store.search(everything).ids) == 40
        with pytest.raises(RetrievalError, match=r"the metadata of record \d+ is damaged in the index"):
            store.search(replace(everything, include_metadata=True))

    with_store(folder, search)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE metadata_values SET value = 2099 WHERE key = 4 AND value = 2003", "record 4 ('id-3'): the index of"),
        ("UPDATE metadata_values SET value = '2003.0' WHERE value = 2003", "record 4 ('id-3'): the index of metadata"),
        ("DELETE FROM metadata_values WHERE key = 4", "record 4 ('id-3'): the index of metadata has other values"),
        ("DELETE FROM metadata_values WHERE key = 40", "record 40 ('id-39'): the index of metadata has other values"),
        ("INSERT INTO metadata_values VALUES (4, 1, 'c')", "record 4 ('id-3'): the index of metadata has other values"),
        ("INSERT INTO metadata_values VALUES (0, 1, 'c')", "index of metadata: 1 values belong to no record"),
        ("INSERT INTO metadata_values VALUES (99, 1, 'c')", "index of metadata: 1 values belong to no record"),
        (
            "UPDATE metadata_fields SET name = 'paGe' WHERE name = 'page'",
            "record 1 ('id-0'): the index of metadata has",
        ),
        (
            "UPDATE metadata_fields SET type = 'string' WHERE name = 'year'",
            "index of metadata: its fields, their types",
        ),
        (
            "UPDATE metadata_fields SET records = 41 WHERE name = 'year'",
            "index of metadata: its fields, their types or",
        ),
        ("DELETE FROM metadata_fields WHERE name = 'tags'", "index of metadata: its fields, their types or counts are"),
    ],
)
def test_a_damaged_index_of_metadata_is_found(folder: Path, statement: str, problem: str) -> None:
    change(folder, statement)
    assert any(found.startswith(problem) for found in verify(folder).problems)


def test_values_of_records_that_are_not_there_are_an_error_of_the_filter(folder: Path) -> None:
    change(folder, "UPDATE metadata_values SET key = 99 WHERE key = 4 AND value = 2003")

    def search(store: LocalVectorStore) -> None:
        everything = SearchQuery(SearchMode.LEXICAL, 40, text="walrus", filter=F("year") > 0)
        with pytest.raises(
            RetrievalError, match="the index of metadata is damaged in the index: `resrank index verify`"
        ):
            store.search(everything)

    with_store(folder, search)


def test_a_damaged_vector_is_refused_at_the_start_and_when_it_is_read(folder: Path) -> None:
    store = LocalVectorStore.open(folder)
    change(folder, "UPDATE vectors SET vector = ? WHERE key = 4", np.ones(D, np.float16).tobytes())
    with pytest.raises(RetrievalError, match="the vector of record 'id-3' is damaged"):
        store.get(["id-3"], include_texts=False, include_embeddings=True)
    store.close()
    assert verify(folder).problems[0] == "record 4 ('id-3'): its vector is damaged"
    with pytest.raises(IndexFolderError, match="the vector of record 4 is damaged in the index"):
        LocalVectorStore.open(folder)


def test_flipped_bits_are_found_or_harmless(folder: Path) -> None:
    """Each of many bits of the database and the snapshot: the index is refused, errs, or answers as before."""
    rng = np.random.default_rng(5)
    answers: dict[bool, object] = {}
    for name in (STORE_FILE, SNAPSHOT_FILE):
        whole = (folder / name).read_bytes()
        for trial in range(25):
            content = bytearray(whole)
            if trial:
                place = int(rng.integers(len(content)))
                content[place] ^= 1 << int(rng.integers(8))
            copy = folder.parent / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            (copy / name).write_bytes(content)
            try:
                store = LocalVectorStore.open(copy)
            except IndexFolderError:
                continue
            try:
                dense = [store.search(query(seed)) for seed in range(5)]
                found = store.get([f"id-{i}" for i in range(40)], include_texts=True, include_embeddings=True)
            except RetrievalError:
                continue
            finally:
                store.close()
            answer = (
                [(hits.ids, hits.texts, hits.titles, str(hits.vectors)) for hits in dense],
                [(id_, stored.record, str(stored.vector)) for id_, stored in sorted(found.items())],
            )
            assert answers.setdefault(True, answer) == answer


def test_a_damaged_record_leaves_no_state_behind_for_what_is_asked_next(folder: Path) -> None:
    """While its error is alive, and its traceback with it."""
    change(folder, "UPDATE records SET text = 'other' WHERE id = 'id-0'")

    def ask(store: LocalVectorStore) -> None:
        with pytest.raises(RetrievalError, match="id-0"):
            store.get([f"id-{i}" for i in range(9)], include_texts=True, include_embeddings=True)
        added = RecordBatch(ENCODER, (Record("new", "title", "narwhal"),), np.ones((1, D), np.float16))
        store.upsert(added)
        asked = replace(query(1, SearchMode.LEXICAL), text="narwhal")
        assert store.search(asked).ids == ["new"]
        with closing(sqlite3.connect(folder / STORE_FILE)) as beside:
            busy, *_ = beside.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            assert not busy

    with_store(folder, ask)


def test_nothing_is_acknowledged_that_goes_to_a_file_which_was_taken_away(folder: Path) -> None:
    store = LocalVectorStore.open(folder)
    kept = folder.parent / "kept"
    (folder / STORE_FILE).rename(kept)
    for attempt in (lambda: store.upsert(batch(seed=2)), lambda: store.delete(["id-1"])):
        with pytest.raises(StoreWriteError, match="was removed or replaced beneath this process"):
            attempt()
    shutil.copy(kept, folder / STORE_FILE)  # another file of that name
    with pytest.raises(StoreWriteError, match="was removed or replaced"):
        store.delete(["id-1"])
    assert len(store.search(query(0)).ids) == 10
    (folder / STORE_FILE).unlink()
    kept.rename(folder / STORE_FILE)
    assert store.delete(["id-1"]) == []
    store.close()
    assert verify(folder).records == 39


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        store = LocalVectorStore.open(tmp_path / "index")
        store.upsert(batch())
        names = {path.name for path in (tmp_path / "index").iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert {STORE_FILE, f"{STORE_FILE}-wal", "lock"} <= names
    assert (tmp_path / "index" / SNAPSHOT_FILE).exists()
    for path in (tmp_path / "index").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / "index").stat().st_mode) == 0o700


def test_a_store_without_checksums_gets_them(folder: Path) -> None:
    connection = sqlite3.connect(folder / STORE_FILE)
    connection.executescript(
        "DROP TABLE checksums; DROP TABLE usage; DROP TABLE metadata_values; DROP TABLE metadata_fields;"
        "PRAGMA user_version = 2;"
        """UPDATE records SET metadata = '{"page": "1"}';"""
    )
    for key, title, text in connection.execute("SELECT key, title, text FROM records").fetchall():
        digest = content_sha256(title, text, {"page": "1"})
        connection.execute("UPDATE records SET content_sha256 = ? WHERE key = ?", (digest, key))
    connection.commit()
    connection.close()
    with pytest.raises(IndexFolderError, match="has schema version 2, and this release verifies 5"):
        verify(folder)
    with_store(folder, lambda store: store.search(query(0)))
    assert verify(folder).problems == ()


def test_the_check_costs_little_of_a_search() -> None:
    """Of 100 candidates with their texts: 5 % of the 5.4 ms of a flat search over 100,000 vectors (docs/serving.md)."""
    title, text = "A title of a passage", "some words of a passage " * 30  # as long as a usual one
    best = np.inf
    for _ in range(50):
        began = time.perf_counter()
        for key in range(100):
            checksums.of_id(key, "an-id-of-a-passage")
            checksums.of_content(title, text)
        best = min(best, time.perf_counter() - began)
    assert best < 0.05 * 5.4e-3
