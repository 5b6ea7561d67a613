"""Every kind of store, each on its real server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from resrank.retrieval.catalog import Catalog
from resrank.retrieval.settings import SidecarSettings
from resrank.retrieval.store_url import StoreUrl
from resrank.retrieval.stores import open_store
from support.milvus_server import MilvusServer, NoMilvus, RunningMilvus
from support.postgres_server import NoPostgres, PostgresServer

KINDS = ("local", "postgresql", "milvus")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    try:
        server = PostgresServer()
    except NoPostgres as error:
        pytest.skip(f"no PostgreSQL here: {error}")
    with server:
        yield server


@pytest.fixture(scope="session")
def milvus() -> Iterator[MilvusServer | RunningMilvus]:
    if address := os.environ.get("RESRANK_TEST_MILVUS"):
        yield RunningMilvus(address)
        return
    try:
        server = MilvusServer()
    except NoMilvus as error:
        pytest.skip(f"no Milvus here: {error}")
    with server:
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of store that a test is run with."""
    return str(request.param)


@pytest.fixture
def store_url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if kind == "local":
        return f"local://{tmp_path / 'index'}"
    server = request.getfixturevalue("postgres" if kind == "postgresql" else "milvus")
    return str(server.emptied())


@pytest.fixture
def open_catalog() -> Iterator[Callable[[str], Catalog]]:
    """``open_catalog(url)`` opens a store in this process, as one sidecar of perhaps several does."""
    with ExitStack() as opened:

        def opener(url: str) -> Catalog:
            catalog = open_store(SidecarSettings(StoreUrl.parse(url), search_threads=2))
            opened.callback(catalog.close)
            return catalog

        yield opener


@pytest.fixture
def catalog(store_url: str, open_catalog: Callable[[str], Catalog]) -> Catalog:
    return open_catalog(store_url)
