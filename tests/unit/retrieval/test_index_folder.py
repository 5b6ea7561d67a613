from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resrank.core.errors import IndexFolderError, InvalidInputError
from resrank.core.filters import F
from resrank.core.metadata import FieldType
from resrank.core.search import SearchMode
from resrank.retrieval.local import snapshot
from resrank.retrieval.local.schema import STORE_FILE
from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.local.verification import verify
from resrank.retrieval.quota import TAKEN
from resrank.retrieval.records import Record, RecordBatch, SearchQuery, StoredRecord

OpenStore = Callable[..., LocalVectorStore]
BatchOf = Callable[..., RecordBatch]


@contextmanager
def database(folder: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(folder / "store.sqlite3")
    yield connection
    connection.commit()
    connection.close()


def foreign_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.docx").touch()


def foreign_database(folder: Path) -> None:
    foreign_file(folder)
    (folder / "thesis.docx").unlink()
    with database(folder) as connection:
        connection.execute("CREATE TABLE bookmarks(url TEXT)")


def later_version(folder: Path) -> None:
    with database(folder) as connection:
        connection.execute("PRAGMA user_version = 99")


def no_database(folder: Path) -> None:
    (folder / "store.sqlite3").write_bytes(b"not a database at all" * 400)


def truncated(folder: Path) -> None:
    content = (folder / "store.sqlite3").read_bytes()
    (folder / "store.sqlite3").write_bytes(content[: len(content) // 2])


def short_vector(folder: Path) -> None:
    with database(folder) as connection:
        connection.execute("UPDATE vectors SET vector = x'0000' WHERE key = 3")


def nan_vector(folder: Path) -> None:
    with database(folder) as connection:
        connection.execute("UPDATE vectors SET vector = ? WHERE key = 3", (np.full(8, np.nan, "<f2").tobytes(),))


def lost_vector(folder: Path) -> None:
    with database(folder) as connection:
        connection.execute("DELETE FROM vectors WHERE key = 3")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (foreign_file, "not an index folder: it holds thesis.docx but no store.sqlite3"),
        (foreign_database, "another program's database"),
        (later_version, "schema version 99, this release reads up to 5"),
        (no_database, "cannot be opened .*not a database"),
        (truncated, "corrupt|malformed"),
        (short_vector, "corrupt: a vector has not 8 components"),
        (nan_vector, "the vector of record 3 is damaged"),
        (lost_vector, "corrupt: 20 records but 19 vectors"),
    ],
)
def test_a_corrupt_or_foreign_folder_is_refused_with_one_sentence(
    open_store: OpenStore, batch_of: BatchOf, damage: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    store = open_store()
    store.upsert(batch_of([str(number) for number in range(20)], text="walrus " * 500))
    store.close()
    damage(tmp_path / "index")
    with pytest.raises(IndexFolderError, match=sentence) as caught:
        open_store()
    assert "\n" not in str(caught.value)


SCHEMA_1_LEXICAL = """
DROP TRIGGER lexical_insert; DROP TRIGGER lexical_delete; DROP TABLE lexical; DROP VIEW lexical_content;
CREATE VIRTUAL TABLE lexical USING fts5(
    title, text, content='records', content_rowid='key', tokenize='porter unicode61'
);
CREATE TRIGGER lexical_insert AFTER INSERT ON records BEGIN
    INSERT INTO lexical(rowid, title, text) VALUES (new.key, new.title, new.text);
END;
CREATE TRIGGER lexical_delete AFTER DELETE ON records BEGIN
    INSERT INTO lexical(lexical, rowid, title, text) VALUES ('delete', old.key, old.title, old.text);
END;
INSERT INTO lexical(lexical) VALUES ('rebuild');
DROP TABLE checksums;
DROP TABLE usage;
DROP TABLE metadata_values;
DROP TABLE metadata_fields;
PRAGMA user_version = 1;
"""


def test_a_folder_of_the_first_schema_is_opened_and_its_words_are_indexed_anew(
    open_store: OpenStore, batch_of: BatchOf, tmp_path: Path
) -> None:
    store = open_store()
    store.upsert(batch_of(["a", "b"], text="東京は日本の首都である {id}"))
    store.close()
    with database(tmp_path / "index") as connection:
        connection.executescript(SCHEMA_1_LEXICAL)
        assert connection.execute("SELECT count(*) FROM lexical WHERE lexical MATCH '首都'").fetchone() == (0,)
    store = open_store()
    assert store.search(SearchQuery(SearchMode.LEXICAL, 5, text="首都")).ids == ["a", "b"]
    store.upsert(batch_of(["a"], text="badgers"))
    store.delete(["b"])
    assert store.search(SearchQuery(SearchMode.LEXICAL, 5, text="首都")).ids == []
    assert store.search(SearchQuery(SearchMode.LEXICAL, 5, text="badger")).ids == ["a"]
    store.close()
    with database(tmp_path / "index") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (5,)
        (counted,) = connection.execute("SELECT bytes FROM usage").fetchone()
        assert counted == connection.execute(TAKEN).fetchone()[0] > 0


SCHEMA_3 = """
ALTER TABLE checksums DROP COLUMN metadata;
DROP TABLE metadata_values;
DROP TABLE metadata_fields;
DROP TABLE usage;
PRAGMA user_version = 3;
"""


def test_the_strings_of_a_folder_of_the_third_schema_can_be_searched_by(
    open_store: OpenStore, batch_of: BatchOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    store.upsert(batch_of(["a", "b", "c\x01", "d"]))  # each with its id as metadata "n"
    digests = {id_: record.content_sha256 for id_, record in read(store).items()}
    store.close()
    with database(tmp_path / "index") as connection:
        connection.executescript(SCHEMA_3)
        connection.execute("UPDATE records SET metadata = '{\"n\": ' WHERE id = 'd'")  # damaged before
    store = open_store()
    assert "the metadata of a record is damaged" in caplog.text
    assert store.describe().fields == {"n": FieldType.STRING}
    everything = SearchQuery(SearchMode.LEXICAL, 5, text="text", include_metadata=True)
    for id_ in ("a", "c\x01"):
        hits = store.search(replace(everything, filter=F("n") == id_))
        assert (hits.ids, hits.metadata) == ([id_], [{"n": id_}])
    assert store.search(replace(everything, include_metadata=False, filter=F("n").exists())).ids == ["a", "b", "c\x01"]
    assert store.get(["b"], include_texts=True, include_embeddings=False)["b"].content_sha256 == digests["b"]
    with pytest.raises(InvalidInputError, match="metadata 'n' of id 'e' is of type number, and of type string"):
        store.upsert(replace(batch_of(["e"]), records=(Record("e", "", "", {"n": 1.0}),)))
    store.upsert(batch_of(["d"]))
    store.delete(["a"])
    store.close()
    assert verify(tmp_path / "index").problems == ()


def read(store: LocalVectorStore) -> dict[str, StoredRecord]:
    return store.get(store.list_ids("", 10), include_texts=False, include_embeddings=False)


def test_a_snapshot_newer_than_a_restored_store_is_not_used(
    open_store: OpenStore, batch_of: BatchOf, tmp_path: Path
) -> None:
    """Keys that the backup never gave are given again, to other vectors than the snapshot has under them."""
    store = open_store()
    store.upsert(batch_of(["kept"], seed=1))
    store.close()
    backup = (tmp_path / "index" / "store.sqlite3").read_bytes()
    store = open_store()
    store.upsert(batch_of(["lost 1", "lost 2"], seed=2))
    snapshot.write(tmp_path / "index", store._dense)
    store.close()
    (tmp_path / "index" / "store.sqlite3").write_bytes(backup)

    store = open_store()
    late = batch_of(["late 1", "late 2", "late 3"], seed=3)
    store.upsert(late)
    for vector, record in zip(late.vectors, late.records, strict=True):
        unit = vector.astype(np.float32) / np.linalg.norm(vector.astype(np.float32))
        hits = store.search(SearchQuery(SearchMode.DENSE, 1, embedding=unit, include_embeddings=True))
        assert hits.ids == [record.id]
        assert hits.vectors is not None
        np.testing.assert_array_equal(hits.vectors[0], vector)
    shutil.copytree(tmp_path / "index", tmp_path / "crashed")  # as kill -9 would leave it: without a new snapshot
    again = open_store(tmp_path / "crashed")
    assert again.search(SearchQuery(SearchMode.DENSE, 1, embedding=unit)).ids == ["late 3"]


def test_a_file_in_place_of_the_folder_is_refused(open_store: OpenStore, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IndexFolderError, match="cannot be made or read"):
        open_store(tmp_path / "file")


def test_an_unknown_dense_index_is_refused_before_the_folder_is_touched(open_store: OpenStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="dense_index"):
        open_store(tmp_path / "never", dense_index="Flaaat")
    assert not (tmp_path / "never").exists()


def test_lock_file_says_who(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.announce("127.0.0.1:4711", transient=True)
    content = json.loads((tmp_path / "index" / "lock").read_text())
    assert (content["address"], content["transient"]) == ("127.0.0.1:4711", True)
    with pytest.raises(
        IndexFolderError, match=rf"owned by process {content['pid']}, which serves it at 127.0.0.1:4711"
    ):
        open_store()


def test_pages_of_the_log_are_put_in_their_place_between_writes(
    open_store: OpenStore, batch_of: BatchOf, tmp_path: Path
) -> None:
    store = open_store()
    for start in range(0, 5000, 500):
        store.upsert(batch_of(f"id-{number}" for number in range(start, start + 500)))
    table = tmp_path / "index" / STORE_FILE
    log = table.with_name(f"{STORE_FILE}-wal")
    assert log.stat().st_size < table.stat().st_size
