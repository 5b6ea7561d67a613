"""What a store does when its server is not there, goes away, or is not what it should be."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import psycopg
import pytest

from resrank.core.errors import InvalidInputError, ResRankError, RetrievalError
from resrank.core.search import SearchMode
from resrank.retrieval.catalog import Catalog
from resrank.retrieval.errors import StoreUnavailableError
from resrank.retrieval.postgres import connections, graph, searching, store
from resrank.retrieval.quota import NO_QUOTA
from resrank.retrieval.records import Encoder, Record, RecordBatch, SearchQuery, UpsertCounts
from resrank.retrieval.settings import SidecarSettings
from resrank.retrieval.store import VectorStore
from resrank.retrieval.store_url import StoreUrl
from support.milvus_server import MilvusServer
from support.postgres_server import PASSWORD, PASSWORD_IN_URL, PostgresServer
from support.transaction_pooler import TransactionPooler

OpenCatalog = Callable[[str], Catalog]
ENCODER = Encoder("a" * 64, 8)


def batch(ids: list[str]) -> RecordBatch:
    vectors = np.random.default_rng(len(ids)).normal(size=(len(ids), ENCODER.dimension)).astype(np.float16)
    return RecordBatch(ENCODER, tuple(Record(id_, "", "walrus") for id_ in ids), vectors)


@pytest.mark.parametrize("kind", ["postgresql", "milvus"], indirect=True)
def test_a_server_that_goes_away_is_unavailable_until_it_is_back(
    kind: str, store_url: str, open_catalog: OpenCatalog, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("postgres" if kind == "postgresql" else "milvus")
    if not isinstance(server, PostgresServer | MilvusServer):
        pytest.skip("the server is not ours to stop")
    catalog = open_catalog(store_url)
    with catalog.collection("default") as held:
        store = held.store
    store.upsert(batch(["a", "b"]))
    server.kill()
    try:
        with pytest.raises(StoreUnavailableError, match=str(server.port)) as raised:
            store.upsert(batch(["c"]))
        assert raised.value.retryable
        assert PASSWORD not in str(raised.value)
    finally:
        server.start()
    assert _tried_again(lambda: store.upsert(batch(["c"]))) == UpsertCounts(inserted=1, updated=0)
    assert store.describe().record_count == 3


def _tried_again(work: Callable[[], UpsertCounts]) -> UpsertCounts:
    until = time.monotonic() + 30
    while True:
        try:
            return work()
        except StoreUnavailableError:
            if time.monotonic() > until:
                raise


def test_a_writer_does_not_wait_forever_for_its_turn(
    postgres: PostgresServer, open_catalog: OpenCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LOCK_WAIT_S", 0.2)
    url = postgres.emptied()
    catalog = open_catalog(url)
    with catalog.collection("default") as held, psycopg.connect(url) as other:
        held.store.upsert(batch(["a"]))
        other.execute("SELECT FROM resrank.collections FOR UPDATE")
        with pytest.raises(StoreUnavailableError, match="lock timeout"):
            held.store.upsert(batch(["b"]))
        other.rollback()
        assert held.store.upsert(batch(["b"])).inserted == 1


def test_what_cannot_be_opened_says_what_to_do_without_the_password(
    postgres: PostgresServer, open_catalog: OpenCatalog
) -> None:
    closed = f"resrank:{PASSWORD_IN_URL}@127.0.0.1:9"
    for url, said in (
        (postgres.url("nosuch"), 'database "nosuch" does not exist'),
        (f"postgresql://{closed}/x", "refused"),
        (f"postgresql://{closed}/x?sslmode=wrong", "sslmode"),
        ("postgresql://host/x?color=red", "no URL that libpq understands"),
        (f"milvus://{closed}", "does not answer"),
        ("milvus://host:99999", "has no port"),
        ("milvus:///db", "must be milvus://"),
        ("elastic://host", "there are local, milvus, postgresql"),
    ):
        with pytest.raises(ResRankError, match=said) as raised:
            open_catalog(url)
        assert PASSWORD not in str(raised.value)
        assert PASSWORD_IN_URL not in str(raised.value)
    from resrank.retrieval.stores import open_store

    with pytest.raises(InvalidInputError, match="dense_index: is of local stores alone"):
        open_store(SidecarSettings(StoreUrl.parse(postgres.url()), dense_index="HNSW32"))


def test_a_missing_package_is_named_with_its_extra(open_catalog: OpenCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, package in (("postgresql", "psycopg"), ("milvus", "pymilvus")):
        parts = f"resrank.retrieval.{kind.removesuffix('ql')}"
        for name in [name for name in sys.modules if name.startswith((package, parts))]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(RetrievalError, match=rf"need the Python package {package}: .*\[store-"):
            open_catalog(f"{kind}://host/x")


def test_a_database_of_a_later_release_is_left_alone(postgres: PostgresServer, open_catalog: OpenCatalog) -> None:
    url = postgres.emptied()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE SCHEMA resrank")
        connection.execute("CREATE TABLE resrank.version AS SELECT 99 AS number")
    with pytest.raises(RetrievalError, match="schema version 99"):
        open_catalog(url)


def test_postgres_refuses_by_name_what_it_has_no_place_for(postgres: PostgresServer, open_catalog: OpenCatalog) -> None:
    catalog = open_catalog(postgres.emptied())
    with catalog.collection("default") as held:
        for record in (Record("b", "\0", ""), Record("b", "", "x\0"), Record("b", "", "", {"k": ("\0",)})):
            vectors = np.ones((2, 8), np.float16)
            with pytest.raises(InvalidInputError, match=r"records\[1\]: .*'b'.*NUL"):
                held.store.upsert(RecordBatch(ENCODER, (Record("a", "", ""), record), vectors))
        long = Record("b", "", "", {"k" * 2049: "v"})
        with pytest.raises(InvalidInputError, match=r"records\[1\]: .*'b'.*limit 2048, got 2049"):
            held.store.upsert(RecordBatch(ENCODER, (Record("a", "", ""), long), vectors))
        assert held.store.get(["\0"], include_texts=True, include_embeddings=True) == {}
        assert held.store.delete(["a", "\0"]) == ["a", "\0"]


def test_postgres_flushes_whatever_the_session_says(postgres: PostgresServer) -> None:
    database = connections.Connections(StoreUrl.parse(postgres.emptied()), 1)
    with closing(database):
        for given, wanted in (("off", "on"), ("remote_apply", "remote_apply")):
            with database.reading() as connection:  # as a pooler hands on another's session
                connection.execute("SELECT set_config('synchronous_commit', %s, false)", (given,))
            with database.writing() as connection:
                assert connection.execute("SHOW synchronous_commit").fetchone() == (wanted,)


def test_of_many_the_hnsw_index_finds_the_nearest_and_never_fewer(
    postgres: PostgresServer, open_catalog: OpenCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (searching, store):
        monkeypatch.setattr(module, "EXACT_BELOW", 400)
    monkeypatch.setattr(graph, "QUIET_S", 0.01)
    catalog = open_catalog(postgres.emptied())
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(1500, 8)).astype(np.float16)
    names = [f"id{number}" for number in range(1500)]
    with catalog.collection("default") as held:
        index = held.store
        for start in range(0, 1500, 500):
            part = slice(start, start + 500)
            index.upsert(RecordBatch(ENCODER, tuple(Record(name, "", "") for name in names[part]), vectors[part]))
        exact = index.describe().dense_index
        index.maintain()
        while index.describe().dense_index == exact:
            time.sleep(0.02)
        assert "HNSW" in index.describe().dense_index
        index.delete(names[:300])
        rows = vectors[300:].astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        missed = 0
        for query in generator.normal(size=(20, 8)).astype(np.float32):
            asked = query / np.linalg.norm(query)
            hits = index.search(SearchQuery(SearchMode.DENSE, 50, embedding=asked))
            best = np.argsort(-(rows @ asked))[:50]
            assert len(set(hits.ids)) == 50
            assert (np.diff(hits.scores) <= 0).all()
            missed += len({names[300 + place] for place in best} - set(hits.ids))
        assert missed <= 10  # of 1000
        assert len(index.search(SearchQuery(SearchMode.DENSE, 1000, embedding=asked)).ids) == 1000


def test_behind_a_pooler_in_transaction_mode_nothing_stays_in_its_sessions(
    postgres: PostgresServer, open_catalog: OpenCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that stayed would keep every sidecar from building an index; a time limit would be somebody else's."""
    monkeypatch.setattr(store, "EXACT_BELOW", 100)
    monkeypatch.setattr(graph, "QUIET_S", 0.01)
    with TransactionPooler(postgres.emptied()) as pooler:
        monkeypatch.setattr(connections.Connections, "alone", lambda _: pooler.connect())
        catalog = open_catalog(postgres.url())
        for name in ("one", "two"):
            catalog.create(name, NO_QUOTA)
            with catalog.collection(name) as held:
                held.store.upsert(batch([f"id{number}" for number in range(200)]))
                _until_indexed(held.store)
        catalog.drop("two")
        (locks,) = pooler.sessions[0].execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
        assert locks == 0
        assert [session.execute("SHOW lock_timeout").fetchone() for session in pooler.sessions] == [("0",)] * 3
        with graph._turn(pooler.connect(), 7) as ours, graph._turn(pooler.connect(), 7) as theirs:
            assert (ours, theirs) == (True, False)


def _until_indexed(index: VectorStore) -> None:
    until = time.monotonic() + 30
    while "HNSW" not in index.describe().dense_index:
        assert time.monotonic() < until
        index.maintain()
        time.sleep(0.02)
