"""Requests that nobody would send: an answer to each, never a 500, and a gateway as well as before."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import QUERY, Served

REQUESTS = int(os.environ.get("RESRANK_FUZZ_REQUESTS", "100000"))
CONNECTIONS = 4
LIMIT_MIB = 150
"""What the process may have grown by: it keeps nothing of a request."""

VALID: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v2/rerank", {"query": QUERY, "documents": ["a river", "the moon"], "top_n": 1, "model": "resrank"}),
    ("/rerank", {"query": QUERY, "texts": ["a river", "the moon"], "truncate": True}),
    ("/rerank", {"query": QUERY, "documents": ["a river"], "property": ""}),
    ("/v1/rerank", {"query": QUERY, "document_ids": ["p1", "p2"], "lexical_weight": 0.5}),
    ("/v1/ranking", {"query": {"text": QUERY}, "passages": [{"text": "the moon"}], "truncate": "END"}),
    ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64"}),
    ("/embed", {"inputs": "a", "normalize": True}),
    ("/v1/search", {"query": QUERY, "k": 2, "candidates": 5, "mode": "hybrid"}),
    ("/v1/search", {"query": QUERY, "filter": "not x exists", "collection": "default", "include_metadata": True}),
)
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**70, 1e308, "", " ", "\x00", "\ud800", "é" * 3000, [], {}, [[]], {"text": 1}),
    *(["", "\udfff", "x"], [None], "a" * 70_000, ["a"] * 1200, {"a": {"b": {"c": []}}}),
)


def mutated(rng: random.Random) -> tuple[str, bytes]:
    """A request, most often near one that is valid."""
    path, body = rng.choice(VALID)
    fields = dict(body)
    for _ in range(rng.randrange(3)):
        name = rng.choice([*fields, "top_n", "documents", "texts", "property", "min_score", "strict", "priority", "x"])
        match rng.randrange(3):
            case 0:
                fields.pop(name, None)
            case 1:
                fields[name] = rng.choice(ODD)
            case 2:
                fields[name] = rng.choice([value for _, other in VALID for value in other.values()])
    raw = json.dumps(fields).encode()
    if rng.random() < 0.3:
        place = rng.randrange(len(raw) + 1)
        junk = bytes(rng.randrange(256) for _ in range(rng.randrange(4)))
        raw = raw[:place] + junk + raw[place + rng.randrange(4) :]
    if rng.random() < 0.05:
        path = rng.choice(["/", "/v1", f"/v1/models/{rng.random()}", "/metrics", "/health", "/%ff", "/docs/../x"])
    return path, raw


def ask(served: Served, seed: int, count: int) -> Counter[int]:
    assert served.stack.gateway is not None
    rng = random.Random(seed)
    statuses: Counter[int] = Counter()
    connection = HTTPConnection(served.stack.gateway.host, served.stack.gateway.port, timeout=60.0)
    for _ in range(count):
        path, raw = mutated(rng)
        kind = (
            "application/json"
            if rng.random() < 0.95
            else rng.choice(["text/plain", "application/x-www-form-urlencoded", ""])
        )
        method = "POST" if rng.random() < 0.97 else rng.choice(["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
        for attempt in (1, 2):
            try:
                connection.request(method, path, raw, {"Content-Type": kind})
                answer = connection.getresponse()
                answer.read()
                statuses[answer.status] += 1
                break
            except (HTTPException, OSError):  # a connection that the gateway ended: the next one has to be answered
                connection.close()
                assert attempt == 1, (method, path, raw[:200])
    connection.close()
    return statuses


@pytest.mark.full
def test_a_hundred_thousand_requests_that_nobody_would_send_are_answered(served: Served, log: Path) -> None:
    assert served.stack.gateway is not None
    process = psutil.Process(served.stack.gateway.pid)
    total = ask(served, 0, min(500, REQUESTS))  # what is loaded and compiled once
    before = process.memory_info().rss
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for part in pool.map(lambda seed: ask(served, seed, REQUESTS // CONNECTIONS), range(1, CONNECTIONS + 1)):
            total += part
    assert not {status for status in total if status >= 500}, total
    assert {200, 400, 404, 405, 422} <= set(total), total
    assert process.memory_info().rss - before < LIMIT_MIB * 1024 * 1024
    assert " error=" not in log.read_text()
    assert served.http.get("/v1/health/ready").status_code == 200
