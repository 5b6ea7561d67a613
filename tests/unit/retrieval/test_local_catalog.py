"""Collections, aliases and quotas of one index folder."""

from __future__ import annotations

import errno
import json
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resrank.core.errors import (
    CollectionNotFoundError,
    EncoderMismatchError,
    IndexFolderError,
    InvalidInputError,
    QuotaExceededError,
    ResRankError,
)
from resrank.core.search import SearchMode
from resrank.retrieval.catalog import Alias
from resrank.retrieval.errors import CollectionExistsError, CollectionInUseError, StoreWriteError
from resrank.retrieval.local import catalog as local_catalog
from resrank.retrieval.local.catalog import LocalCatalog
from resrank.retrieval.local.catalog_file import CATALOG_FILE, COLLECTIONS_FOLDER, CatalogFile
from resrank.retrieval.local.database import Change, Database
from resrank.retrieval.local.schema import STORE_FILE
from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.local.verification import verify
from resrank.retrieval.quota import NO_QUOTA, Quota
from resrank.retrieval.records import Encoder, RecordBatch, SearchQuery

BatchOf = Callable[..., RecordBatch]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def catalog(folder: Path) -> Iterator[LocalCatalog]:
    with closing(LocalCatalog.open(folder)) as opened:
        yield opened


def ids_of(catalog: LocalCatalog, name: str) -> list[str]:
    with catalog.collection(name) as held:
        return held.store.list_ids("", 100)


def upsert(catalog: LocalCatalog, name: str, batch: RecordBatch) -> None:
    with catalog.collection(name) as held:
        held.store.upsert(batch)


def size_of(batch: RecordBatch) -> int:
    return 2 * batch.vectors.size + sum(
        len(f"{record.id}{record.title}{record.text}".encode())
        + len(json.dumps(record.metadata, sort_keys=True, ensure_ascii=False).encode())
        for record in batch.records
    )


def test_collections_and_aliases_are_what_they_were_after_another_start(folder: Path, batch_of: BatchOf) -> None:
    other = Encoder("b" * 64, 4)
    with closing(LocalCatalog.open(folder)) as catalog:
        upsert(catalog, "default", batch_of(["a", "b"]))
        catalog.create("docs@v1", Quota(records=3, bytes=10_000))
        upsert(catalog, "docs@v1", batch_of(["b", "c"], encoder=other, seed=1))
        assert catalog.set_alias(Alias("docs", "docs@v1", "localhost:9001"), None) is None
    with closing(LocalCatalog.open(folder)) as catalog:
        assert [info.name for info in catalog.collections()] == ["default", "docs@v1"]
        default, docs = (info.usage for info in catalog.collections())
        assert (default.encoder, default.record_count, default.quota) == (Encoder("a" * 64, 8), 2, NO_QUOTA)
        assert (docs.encoder, docs.record_count, docs.quota) == (other, 2, Quota(3, 10_000))
        assert docs.bytes == size_of(batch_of(["b", "c"], encoder=other))
        assert catalog.aliases() == [Alias("docs", "docs@v1", "localhost:9001")]
        assert catalog.resolve("docs") == "docs@v1"
        assert (ids_of(catalog, "default"), ids_of(catalog, "docs")) == (["a", "b"], ["b", "c"])
    assert verify(folder).records == 4
    assert verify(folder).problems == ()


def test_no_request_reads_another_collection(catalog: LocalCatalog, batch_of: BatchOf) -> None:
    """By vector, by word, by id, in lists, by what a delete or a replacement touches, and in a copy of all."""
    one, two = batch_of(["same", "one"], text="okapi {id}"), batch_of(["same", "two"], text="lemur {id}", seed=1)
    catalog.create("two", NO_QUOTA)
    upsert(catalog, "default", one)
    upsert(catalog, "two", two)
    for name, mine, theirs, word in (("default", one, two, "lemur"), ("two", two, one, "okapi")):
        with catalog.collection(name) as held:
            query = SearchQuery(SearchMode.DENSE, 10, embedding=theirs.vectors[1].astype(np.float32))
            assert sorted(held.store.search(query).ids) == sorted(record.id for record in mine.records)
            assert held.store.search(SearchQuery(SearchMode.LEXICAL, 10, text=word)).ids == []
            found = held.store.get(["same", theirs.records[1].id], include_texts=True, include_embeddings=True)
            assert {id_: stored.record for id_, stored in found.items()} == {"same": mine.records[0]}
            copied = [record for batch in held.store.export() for record in batch.records]
            assert copied == sorted(mine.records, key=lambda record: record.id)
    with catalog.collection("two") as held:
        assert held.store.delete(["same", "one"]) == ["one"]
    assert (ids_of(catalog, "default"), ids_of(catalog, "two")) == (["one", "same"], ["two"])


def test_an_alias_moves_and_comes_back(catalog: LocalCatalog, batch_of: BatchOf) -> None:
    for name in ("v1", "v2"):
        catalog.create(name, NO_QUOTA)
        upsert(catalog, name, batch_of([name]))
    catalog.set_alias(Alias("docs", "v1"), "a" * 64)
    with catalog.collection("docs") as before:
        assert catalog.set_alias(Alias("docs", "v2", "[::1]:8001"), None) == Alias("docs", "v1")
        assert (before.name, before.store.list_ids("", 9)) == ("v1", ["v1"])  # a request ends where it began
        assert ids_of(catalog, "docs") == ["v2"]
    assert catalog.set_alias(Alias("docs", "v1"), None) == Alias("docs", "v2", "[::1]:8001")
    assert ids_of(catalog, "docs") == ["v1"]
    catalog.delete_alias("docs")
    with pytest.raises(CollectionNotFoundError, match="there is no collection and no alias 'docs'"):
        ids_of(catalog, "docs")
    assert ids_of(catalog, "v1") == ["v1"]


def test_what_an_alias_may_not_be(catalog: LocalCatalog, batch_of: BatchOf) -> None:
    catalog.create("v1", NO_QUOTA)
    upsert(catalog, "v1", batch_of(["a"]))
    catalog.set_alias(Alias("docs", "v1"), None)
    refused: list[tuple[Alias, str | None, type[ResRankError], str]] = [
        (Alias("more", "docs"), None, InvalidInputError, r"alias.collection: 'docs' is an alias itself"),
        (Alias("docs", "docs"), None, InvalidInputError, r"alias.collection: 'docs' is an alias itself"),
        (Alias("docs", "v2"), None, CollectionNotFoundError, "no collection and no alias 'v2'"),
        (Alias("v1", "default"), None, CollectionExistsError, "'v1' is a collection"),
        (Alias("default", "v1"), None, CollectionExistsError, "'default' is a collection"),
        (Alias("docs", "v1", "h:1"), "b" * 64, EncoderMismatchError, f"{'a' * 64}, h:1 serves encoder {'b' * 64}"),
    ]
    for alias, encoder, error, said in refused:
        with pytest.raises(error, match=said):
            catalog.set_alias(alias, encoder)
    assert catalog.aliases() == [Alias("docs", "v1")]
    for name, kind in (("v1", CollectionExistsError), ("docs", CollectionExistsError)):
        with pytest.raises(kind, match="already"):
            catalog.create(name, NO_QUOTA)
    with pytest.raises(CollectionNotFoundError, match="there is no alias 'v1'"):
        catalog.delete_alias("v1")


def test_an_alias_waits_for_a_first_batch_that_binds_its_collection(
    catalog: LocalCatalog, batch_of: BatchOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.create("docs@v1", NO_QUOTA)
    storing, go_on = threading.Event(), threading.Event()
    stage = Database.stage_upsert

    def slowly(self: Database, batch: RecordBatch) -> Change:
        storing.set()
        go_on.wait()
        return stage(self, batch)

    monkeypatch.setattr(Database, "stage_upsert", slowly)
    with ThreadPoolExecutor(2) as threads:
        stored = threads.submit(upsert, catalog, "docs@v1", batch_of(["a"], encoder=Encoder("b" * 64, 8)))
        storing.wait()
        alias = threads.submit(catalog.set_alias, Alias("docs", "docs@v1"), "a" * 64)
        wait([alias], timeout=0.2)  # time in which it would be done, were it not to wait
        go_on.set()
        stored.result()
        with pytest.raises(EncoderMismatchError, match=f"belongs to encoder {'b' * 64}"):
            alias.result()
    assert catalog.aliases() == []
    catalog.set_alias(Alias("docs", "docs@v1"), "b" * 64)


def test_what_cannot_be_dropped(catalog: LocalCatalog) -> None:
    catalog.create("v1", NO_QUOTA)
    catalog.set_alias(Alias("docs", "v1"), None)
    for name, error, said in (
        ("default", CollectionInUseError, "always exists"),
        ("v1", CollectionInUseError, "the alias 'docs' names"),
        ("docs", CollectionInUseError, "is an alias"),
        ("v2", CollectionNotFoundError, "no collection"),
    ):
        with pytest.raises(error, match=said):
            catalog.drop(name)
    assert [info.name for info in catalog.collections()] == ["default", "v1"]


def test_a_dropped_collection_lasts_as_long_as_somebody_holds_it(
    catalog: LocalCatalog, folder: Path, batch_of: BatchOf
) -> None:
    catalog.create("docs", NO_QUOTA)
    upsert(catalog, "docs", batch_of(["a"]))
    with catalog.collection("docs") as held:
        catalog.drop("docs")
        with pytest.raises(CollectionNotFoundError):
            catalog.resolve("docs")
        catalog.create("docs", NO_QUOTA)  # another one
        held.store.upsert(batch_of(["b"]))
        assert [record.id for batch in held.store.export() for record in batch.records] == ["a", "b"]
        assert ids_of(catalog, "docs") == []
        assert len(list((folder / COLLECTIONS_FOLDER).iterdir())) == 2
    assert len(list((folder / COLLECTIONS_FOLDER).iterdir())) == 1
    upsert(catalog, "docs", batch_of(["c"]))
    assert ids_of(catalog, "docs") == ["c"]


@pytest.mark.parametrize(
    ("limits", "said"),
    [(Quota(records=3), r"records \(limit 3, got 4\)"), (Quota(bytes=130), r"bytes \(limit 130, got \d+\)")],
)
def test_a_batch_beyond_the_quota_changes_nothing(
    catalog: LocalCatalog, batch_of: BatchOf, limits: Quota, said: str
) -> None:
    catalog.create("small", limits)
    upsert(catalog, "small", batch_of(["a", "b"]))
    usage = catalog.collections()[1].usage
    with pytest.raises(QuotaExceededError, match=rf"^quota exceeded: .*{said}"):
        upsert(catalog, "small", batch_of(["b", "c", "d"], text="longer text of {id}"))
    assert catalog.collections()[1].usage == usage
    assert ids_of(catalog, "small") == ["a", "b"]
    upsert(catalog, "small", batch_of(["b", "a"], text="othér téxt"))  # in place of what there is
    with catalog.collection("small") as held:
        held.store.delete(["a", "b", "c"])
    assert catalog.collections()[1].usage.bytes == 0
    upsert(catalog, "small", batch_of(["c"]))
    assert catalog.collections()[1].usage.bytes == size_of(batch_of(["c"]))


def test_there_are_only_so_many_collections_and_aliases(catalog: LocalCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_catalog, "MAX_COLLECTIONS", 2)
    monkeypatch.setattr(local_catalog, "MAX_ALIASES", 1)
    catalog.create("one", NO_QUOTA)
    with pytest.raises(QuotaExceededError, match=r"too many collections \(limit 2, got 3\)"):
        catalog.create("two", NO_QUOTA)
    catalog.set_alias(Alias("docs", "one"), None)
    catalog.set_alias(Alias("docs", "default"), None)
    with pytest.raises(QuotaExceededError, match=r"too many aliases \(limit 1, got 2\)"):
        catalog.set_alias(Alias("more", "one"), None)


def test_what_a_dead_process_left_is_removed_at_the_next_start(folder: Path, batch_of: BatchOf) -> None:
    with closing(LocalCatalog.open(folder)) as catalog:
        catalog.create("kept", NO_QUOTA)
        upsert(catalog, "kept", batch_of(["a"]))
    for left in ("half", "dropped"):
        shutil.copytree(folder / COLLECTIONS_FOLDER / "kept", folder / COLLECTIONS_FOLDER / left)
    (folder / COLLECTIONS_FOLDER / "half" / STORE_FILE).unlink()
    (folder / COLLECTIONS_FOLDER / "strange").mkdir()  # nobody's of ours, so it is left alone
    with closing(sqlite3.connect(folder / CATALOG_FILE)) as connection, connection:
        connection.execute("INSERT INTO leftovers VALUES ('half'), ('dropped'), ('gone')")
    with closing(LocalCatalog.open(folder)) as catalog:
        assert [info.name for info in catalog.collections()] == ["default", "kept"]
        assert ids_of(catalog, "kept") == ["a"]
        catalog.create("half", NO_QUOTA)
    assert sorted(path.name for path in (folder / COLLECTIONS_FOLDER).iterdir()) == ["half", "kept", "strange"]


def test_a_name_is_free_again_after_a_making_that_the_disk_refused_even_to_undo(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def refused(*_: object) -> None:
        raise StoreWriteError("the disk refused to write")

    with closing(LocalCatalog.open(folder)) as catalog:
        with monkeypatch.context() as patch:
            patch.setattr(local_catalog, "make_store", full)
            patch.setattr(CatalogFile, "forget", refused)
            with pytest.raises(StoreWriteError, match="No space left"):
                catalog.create("docs", NO_QUOTA)
        catalog.create("docs", NO_QUOTA)
        catalog.drop("docs")
        catalog.create("docs", NO_QUOTA)
    with closing(LocalCatalog.open(folder)) as catalog:
        assert [info.name for info in catalog.collections()] == ["default", "docs"]


def test_a_leftover_that_cannot_be_removed_keeps_no_folder_from_being_served(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(LocalCatalog.open(folder)) as catalog:
        catalog.create("kept", NO_QUOTA)
    (folder / COLLECTIONS_FOLDER / "docs").mkdir()
    with closing(sqlite3.connect(folder / CATALOG_FILE)) as connection, connection:
        connection.execute("INSERT INTO leftovers VALUES ('docs')")

    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refused)
        with closing(LocalCatalog.open(folder)) as catalog:
            catalog.create("docs", NO_QUOTA)  # in another folder
            assert [info.name for info in catalog.collections()] == ["default", "docs", "kept"]
    with closing(LocalCatalog.open(folder)) as catalog:
        assert [info.name for info in catalog.collections()] == ["default", "docs", "kept"]
    assert sorted(path.name for path in (folder / COLLECTIONS_FOLDER).iterdir()) == ["docs~2", "kept"]


def _no_catalog(folder: Path) -> None:
    (folder / CATALOG_FILE).unlink()


def _empty_catalog(folder: Path) -> None:
    (folder / CATALOG_FILE).write_bytes(b"")


def _no_database(folder: Path) -> None:
    (folder / CATALOG_FILE).write_bytes(b"x" * 8192)


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder / COLLECTIONS_FOLDER / "docs")


def _damaged_store(folder: Path) -> None:
    (folder / COLLECTIONS_FOLDER / "docs" / STORE_FILE).write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_no_catalog, "holds collections but no catalog.sqlite3"),
        (_empty_catalog, "catalog.sqlite3 is damaged"),
        (_no_database, "catalog.sqlite3 cannot be opened"),
        (_no_folder, "the collection 'docs' is lost: restore"),
        (_damaged_store, "is empty, its content was lost"),
    ],
)
def test_nothing_is_served_that_is_not_whole(folder: Path, damage: Callable[[Path], Any], said: str) -> None:
    with closing(LocalCatalog.open(folder)) as catalog:
        catalog.create("docs", NO_QUOTA)
    damage(folder)
    for _ in range(2):  # what was opened is given back
        with pytest.raises(IndexFolderError, match=said):
            LocalCatalog.open(folder)


def test_the_folders_lock_covers_all_collections(catalog: LocalCatalog, folder: Path) -> None:
    catalog.create("docs", NO_QUOTA)
    for owned in (folder, folder / COLLECTIONS_FOLDER / "docs"):
        with pytest.raises(IndexFolderError, match="is owned by process"):
            LocalVectorStore.open(owned)
