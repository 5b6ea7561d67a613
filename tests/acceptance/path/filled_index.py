"""What the adapters' tests share: clients of gRPC, before an index with the documents of all acceptance tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from acceptance import DOCUMENTS
from resrank.client import AsyncResRankClient, ResRankClient
from resrank.client.sidecar import AsyncSidecar
from resrank.core.corpus import Passage

TRITON = os.environ["RESRANK_ACCEPTANCE_TRITON"]
RETRIEVAL = os.environ["RESRANK_ACCEPTANCE_RETRIEVAL"]
TIMEOUT_S = 60.0
PASSAGES = [
    Passage(line, f"d{line - 1}", f"Title {line}", text, {"place": float(line - 1)})
    for line, text in enumerate(DOCUMENTS, start=1)
]
NOBODY = "127.0.0.1:1"
"""An address where nothing listens."""


@pytest.fixture(scope="session")
def client() -> Iterator[ResRankClient]:
    with ResRankClient(TRITON, retrieval=RETRIEVAL, timeout_s=TIMEOUT_S) as client:
        asyncio.run(_fill(client))
        yield client


@pytest_asyncio.fixture
async def async_client(client: ResRankClient) -> AsyncIterator[AsyncResRankClient]:
    async with AsyncResRankClient(TRITON, retrieval=RETRIEVAL, timeout_s=TIMEOUT_S) as client:
        yield client


@pytest.fixture(scope="session")
def lost() -> Iterator[ResRankClient]:
    """A client whose servers are down, and which puts up with it."""
    with ResRankClient(NOBODY, retrieval=NOBODY, max_attempts=1, on_failure="retrieval_order") as client:
        yield client


async def _fill(client: ResRankClient) -> None:
    vectors = client.embed_passages([passage.encoder_text for passage in PASSAGES])
    async with AsyncSidecar(RETRIEVAL) as sidecar:
        await sidecar.upsert(client.encoder_sha256(), PASSAGES, vectors)
