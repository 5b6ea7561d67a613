"""Who is let in, and what is told of whom."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from resrank.core.errors import QueueFullError
from resrank.core.logs import LogFormat, log_formatter
from resrank.core.names import Priority
from resrank.gateway.keys import add_key

from .conftest import DecidedClient, Serve

BODY = {"query": "a secret question", "documents": ["a secret text"]}


async def test_more_requests_than_are_admitted_are_told_to_come_again(serve: Serve, client: DecidedClient) -> None:
    client.delay_s = 0.3
    async with serve(max_in_flight=2) as http:
        answers = await asyncio.gather(*(http.post("/v2/rerank", json=BODY) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert "the gateway is full" in refused.json()["message"]
        assert (await http.get("/v1/health/live")).status_code == 200
        assert (await http.post("/v2/rerank", json=BODY)).status_code == 200


async def test_a_body_that_is_too_long_is_refused_by_its_length_and_while_it_comes(serve: Serve) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1024
            yield b" " * 1024

    async with serve(max_body_bytes=4096) as http:
        told = await http.post("/rerank", content=b" " * 5000, headers={"Content-Type": "application/json"})
        counted = await http.post("/rerank", content=endless(), headers={"Content-Type": "application/json"})
    assert told.status_code == counted.status_code == 413
    assert told.json()["message"] == told.json()["error"] == "body: too many bytes (limit 4096, got 5000)"
    assert counted.json()["message"] == "body: too many bytes (limit 4096, got more)"


async def test_bodies_of_untold_length_take_what_they_have(serve: Serve, client: DecidedClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield json.dumps(BODY).encode()

    client.delay_s = 0.5
    headers = {"Content-Type": "application/json"}
    async with serve(max_in_flight=20, max_body_bytes=4096) as http:
        answers = []
        for _ in range(12):  # one after the other read, all of them under way at once
            answers.append(asyncio.create_task(http.post("/v2/rerank", content=pieces(), headers=headers)))
            await asyncio.sleep(0.03)
        assert [(await answer).status_code for answer in answers] == [200] * 12


async def test_a_body_that_does_not_come_is_not_waited_for(serve: Serve) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b'{"query"'
        await asyncio.sleep(5)
        yield b": 1}"

    async with serve(body_timeout_s=0.05) as http:
        answer = await http.post("/v1/search", content=slow(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 408
    assert answer.json()["error"]["message"] == "body: did not come within 0.05 s"


async def test_a_key_lets_in_by_either_header_and_nothing_else_does(serve: Serve, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys", "search-team")
    async with serve(keys=tmp_path / "keys") as http:
        for headers in ({"Authorization": f"Bearer {key}"}, {"authorization": f"bearer {key}"}, {"X-API-Key": key}):
            assert (await http.post("/v2/rerank", json=BODY, headers=headers)).status_code == 200, headers
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {key}"}, {"X-API-Key": "é"}):
            answer = await http.post("/v2/rerank", json=BODY, headers={k: v.encode() for k, v in headers.items()})
            assert answer.status_code == 401, headers
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "send a key" in answer.json()["message"]
        for path in ("/v1/models", "/metrics", "/nothing"):
            assert (await http.get(path)).status_code == 401, path
        for path in ("/v1/health/live", "/v1/health/ready", "/health", "/docs", "/openapi.json"):
            assert (await http.get(path)).status_code == 200, path


async def test_the_log_tells_of_every_request_and_of_no_text_and_no_key(
    serve: Serve, client: DecidedClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = add_key(tmp_path / "keys", "search-team")
    headers = {"Authorization": f"Bearer {key}", "X-Request-ID": "my-request.1"}
    async with serve(keys=tmp_path / "keys") as http:
        answer = await http.post("/v2/rerank?query=a+secret+question", json=BODY, headers=headers)
        assert answer.headers["x-request-id"] == answer.json()["id"] == "my-request.1"
        await http.post("/secret/a-secret-text", json=BODY, headers=headers)
        await http.post("/v1/search", json={"query": "a secret question", "mode": "secret"}, headers=headers)
        client.error = QueueFullError("full")
        await http.post("/v2/rerank", json=BODY, headers=headers | {"X-Request-ID": "two words\n"})
        await http.get("/v1/health/live")
    text = log_formatter(LogFormat.TEXT)
    lines = [
        text.format(record).partition(" resrank.gateway ")[2] for record in caplog.records if "gateway" in record.name
    ]
    assert len(lines) == 4
    assert lines[0].startswith("request id=my-request.1 caller=search-team method=POST route=/v2/rerank status=200 ms=")
    assert " documents=1 truncated=0 unusable=0" in lines[0]
    assert "route=other status=404" in lines[1]
    assert "status=422" in lines[2]
    assert "status=429" in lines[3]
    assert lines[3].endswith("failure=queue_full")
    told = "\n".join(map(text.format, (record for record in caplog.records if record.name.startswith("resrank"))))
    assert "secret" not in told
    assert key not in told
    assert "two words" not in told


async def test_the_metrics_tell_the_same(serve: Serve, client: DecidedClient) -> None:
    async with serve() as http:
        await http.post("/rerank", json={"query": "q", "texts": ["a", "", "b"]})
        client.error = QueueFullError("full")
        await http.post("/rerank", json={"query": "q", "texts": ["a"]})
        page = (await http.get("/metrics")).text
    for line in (
        'resrank_gateway_requests_total{route="/rerank",schema="tei",status="200"} 1.0',
        'resrank_gateway_requests_total{route="/rerank",schema="tei",status="429"} 1.0',
        'resrank_gateway_documents_total{route="/rerank"} 4.0',
        'resrank_gateway_unusable_documents_total{route="/rerank"} 1.0',
        'resrank_gateway_request_seconds_count{route="/rerank"} 2.0',
        "resrank_gateway_requests_under_way 1.0",
    ):
        assert line in page.splitlines()


async def test_a_trace_goes_along_where_it_is_one(serve: Serve, client: DecidedClient) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    async with serve() as http:
        for given, sent in ((trace, trace), ("00-xyz", None)):
            answer = await http.post("/v2/rerank", json=BODY, headers={"traceparent": given})
            assert answer.status_code == 200
            assert client.calls[-1][1]["traceparent"] == sent


async def test_a_priority_is_tritons(serve: Serve, client: DecidedClient) -> None:
    """0, or none, is the most urgent to Cohere and vLLM."""
    async with serve() as http:
        for given, level in ((None, Priority.INTERACTIVE), (0, Priority.INTERACTIVE), (7, Priority.BULK)):
            body = BODY if given is None else BODY | {"priority": given}
            assert (await http.post("/v2/rerank", json=body)).status_code == 200
            assert client.calls[-1][1]["priority"] is level
        await http.post("/v1/embeddings", json={"input": "a", "priority": 3})
        assert client.calls[-1][1]["bulk"] is True
