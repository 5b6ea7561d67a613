"""What no call can mean is refused by name before a server is asked, by both clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from resrank.client import AsyncResRankClient, ResRankClient, TlsConfig
from resrank.core.errors import InvalidInputError, ResRankError, ServerUnavailableError

NOBODY = "127.0.0.1:9"
CALLS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda client: client.search("x", "2"), "k"),
    (lambda client: client.search("x", 2.0), "k"),
    (lambda client: client.search("x", candidates=None), "candidates"),
    (lambda client: client.search("x", mode=7), "mode"),
    (lambda client: client.search("x", route=None), "route"),
    (lambda client: client.search("x", rerank="no"), "rerank"),
    (lambda client: client.search("x", on_failure="ignore"), "on_failure"),
    (lambda client: client.rerank("x", passages=["a"], on_failure=True), "on_failure"),
    (lambda client: client.search("x", truncate=1), "truncate"),
    (lambda client: client.search(7), "QUERY"),
    (lambda client: client.search("x", timeout_s="5"), "timeout_s"),
    (lambda client: client.search("x", traceparent=7), "traceparent"),
    (lambda client: client.rerank("x", passages=(text for text in ["a"])), "PASSAGES"),
    (lambda client: client.rerank("x", passages={"a", "b"}), "PASSAGES"),
    (lambda client: client.rerank("x", passages="text"), "PASSAGES"),
    (lambda client: client.rerank("x", [[1.0, 2.0]]), "CANDIDATES"),
    (lambda client: client.rerank("x", np.ones((2, 2), np.float32), second_pass=None), "second_pass"),
    (lambda client: client.rerank("x"), "candidates"),
    (lambda client: client.embed_queries(text for text in ["a"]), "QUERY"),
    (lambda client: client.embed_queries(7), "QUERY"),
    (lambda client: client.embed_passages(None), "TEXT"),
    (lambda client: client.embed_passages(["x"], truncate="no"), "truncate"),
]


@pytest.mark.parametrize(("call", "field"), CALLS)
def test_it_is_named(call: Callable[[Any], Any], field: str) -> None:
    async def ask() -> None:
        async with AsyncResRankClient(NOBODY, retrieval=NOBODY, max_attempts=1) as client:
            await call(client)

    with (
        ResRankClient(NOBODY, retrieval=NOBODY, max_attempts=1) as client,
        pytest.raises(InvalidInputError) as caught,
    ):
        call(client)
    assert caught.value.field == field
    with pytest.raises(InvalidInputError) as caught:
        asyncio.run(ask())
    assert caught.value.field == field


def test_a_client_of_a_loop_that_has_ended_says_so() -> None:
    client = AsyncResRankClient(NOBODY, max_attempts=1)

    async def ask() -> None:
        await client.embed_queries(["x"])

    with pytest.raises(ServerUnavailableError):
        asyncio.run(ask())
    with pytest.raises(ResRankError, match="the client belongs to another event loop"):
        asyncio.run(ask())


def test_a_certificate_that_is_no_path_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"^tls\.root_certificates: must be a path, not int"):
        TlsConfig(root_certificates=5)  # type: ignore[arg-type]
