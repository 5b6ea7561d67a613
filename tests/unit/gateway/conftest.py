"""The gateway in this process, in front of a client that fails, or answers, as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from resrank.client import AsyncResRankClient, HealthReport, RankedPassage, RerankResult, SearchResult
from resrank.core.calibration import Calibration
from resrank.core.tracing import write_traceparent
from resrank.gateway.app import create_app
from resrank.gateway.settings import GatewaySettings, read_settings


class DecidedClient(AsyncResRankClient):
    """The client as far as the gateway calls it: every answer is decided by the test, an error or how long it takes.

    What the servers do is tested where they are real (tests/integration/gateway).
    """

    error: Exception | None = None
    delay_s = 0.0
    fitted: Calibration | None = None

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, dict[str, Any]]] = []

    async def _decide(self, method: str, **given: Any) -> None:
        self.calls.append((method, given | {"traceparent": write_traceparent()}))
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error

    async def rerank(self, query: str, candidates: Any = None, **given: Any) -> RerankResult:
        await self._decide("rerank", query=query, **given)
        return RerankResult(ranked(len(given["passages"])), {"rerank": 1.0, "total": 2.0})

    async def rerank_stored(self, query: str, ids: Any, **given: Any) -> RerankResult:
        await self._decide("rerank_stored", query=query, ids=ids, **given)
        return RerankResult(ranked(len(ids)), {"total": 2.0})

    async def search(self, query: str, k: int = 10, **given: Any) -> SearchResult:
        await self._decide("search", query=query, k=k, **given)
        return SearchResult(query, "hybrid", True, ranked(k), {"total": 2.0})

    async def embed_queries(self, texts: Any, **given: Any) -> Any:
        await self._decide("embed_queries", texts=texts, **given)
        return np.ones((len(texts), 4), np.float32)

    async def embed_passages(self, texts: Any, **given: Any) -> Any:
        await self._decide("embed_passages", texts=texts, **given)
        return np.ones((len(texts), 4), np.float32)

    async def calibration(self, **given: Any) -> Calibration | None:
        return self.fitted

    async def lexical_weight(self, **given: Any) -> float:
        return 0.3

    async def encoder_sha256(self, **given: Any) -> str:
        await self._decide("encoder_sha256", **given)
        return "e" * 64

    async def health(self, **given: Any) -> HealthReport:
        await self._decide("health", **given)
        return HealthReport(True, True, {}, "e" * 64, None, ())


def ranked(count: int) -> tuple[RankedPassage, ...]:
    """The last one given is the best."""
    return tuple(
        RankedPassage(
            rank=rank + 1,
            index=count - 1 - rank,
            score=1.0 - rank / 10,
            id=f"p{rank}",
            title="a title",
            text="a text",
            candidate_rank=count - rank,
            candidate_score=None,
            rerank_score=1.0 - rank / 10,
        )
        for rank in range(count)
    )


Serve = Callable[..., Any]


@pytest.fixture
def client() -> DecidedClient:
    return DecidedClient()


@pytest.fixture
def serve(client: DecidedClient) -> Serve:
    """``async with serve(**settings) as http`` serves in this process and gives a client of HTTP."""

    @asynccontextmanager
    async def start(**given: Any) -> AsyncIterator[httpx.AsyncClient]:
        settings: GatewaySettings = read_settings(None, **given)
        app = create_app(settings, lambda _: client)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as http,
        ):
            yield http

    return start
