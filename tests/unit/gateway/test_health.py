"""Probes: what they cost, and what is told to whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resrank.client import AsyncResRankClient, HealthReport, plans
from resrank.client.calls import Call
from resrank.client.facts import FactsCache
from resrank.client.triton_calls import ModelFacts
from resrank.core.errors import ServerUnavailableError
from resrank.core.names import Model
from resrank.gateway import shared_report
from resrank.gateway.keys import add_key

from .conftest import DecidedClient, Serve

PROBLEM = "description of the index: no server answers (UNAVAILABLE, ipv4:10.0.0.7:8003: refused)"
PROBES = ("/health", "/v1/health/ready")


def asked(client: DecidedClient) -> int:
    return sum(method == "health" for method, _ in client.calls)


def report(monkeypatch: pytest.MonkeyPatch, found: HealthReport) -> None:
    async def health(self: DecidedClient, **given: Any) -> HealthReport:
        await self._decide("health", **given)
        return found

    monkeypatch.setattr(DecidedClient, "health", health)


WELL = HealthReport(True, True, {}, "e" * 64, None, ())
WITHOUT_SIDECAR = replace(WELL, problems=(PROBLEM,))
DOWN = HealthReport(False, False, {}, None, None, (PROBLEM,))


async def test_probes_at_once_and_within_a_second_are_answered_by_one_report(
    serve: Serve, client: DecidedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_report, "_KEPT_S", 60.0)  # a second is short on a busy machine
    client.delay_s = 0.1
    async with serve() as http:
        answers = await asyncio.gather(*(http.get(path) for path in PROBES * 50))
        assert {answer.status_code for answer in answers} == {200}
        assert asked(client) == 1
        report(monkeypatch, DOWN)
        assert (await http.get("/health")).status_code == 200
        assert asked(client) == 1
        monkeypatch.setattr(shared_report, "_KEPT_S", 0.0)
        assert (await http.get("/health")).status_code == 503
        assert asked(client) == 2


async def test_a_prober_that_hangs_up_takes_no_answer_from_another(serve: Serve, client: DecidedClient) -> None:
    client.delay_s = 0.2
    async with serve() as http:
        first = asyncio.create_task(http.get("/health"))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(http.get("/health"))
        await asyncio.sleep(0.05)
        first.cancel()
        assert (await second).status_code == 200
        assert asked(client) == 1


async def test_a_report_that_failed_is_not_kept(serve: Serve, client: DecidedClient) -> None:
    async with serve() as http:
        client.error = RuntimeError("of the gateway's own")
        assert (await http.get("/health")).status_code == 500
        client.error = None
        assert (await http.get("/health")).status_code == 200


@pytest.mark.parametrize("found", [WITHOUT_SIDECAR, DOWN])
async def test_what_is_wrong_is_told_in_full_to_callers_with_a_key_alone(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: HealthReport
) -> None:
    report(monkeypatch, found)
    key = add_key(tmp_path / "keys", "search-team")
    status = 200 if found.ready else 503
    async with serve(keys=tmp_path / "keys") as http:
        for path in PROBES:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "é".encode()}):
                answer = await http.get(path, headers=headers)
                assert answer.status_code == status
                assert answer.json()["ready"] is found.ready
                assert answer.json()["problems"] == ["something is in the way: with a key this page tells what"]
                assert "10.0.0.7" not in answer.text
            for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}):
                answer = await http.get(path, headers=headers)
                assert answer.status_code == status
                assert answer.json()["problems"] == [PROBLEM]


async def test_without_keys_everybody_is_told_and_of_nothing_wrong_nothing(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(monkeypatch, DOWN)
    async with serve() as http:
        assert (await http.get("/health")).json()["problems"] == [PROBLEM]
    report(monkeypatch, WELL)
    add_key(tmp_path / "keys", "search-team")
    async with serve(keys=tmp_path / "keys") as http:
        assert (await http.get("/health")).json()["problems"] == []


class Servers(AsyncResRankClient):
    """A Triton whose models are all ready, and whose ``rerank`` is of some encoder."""

    def __init__(self, encoder: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.sent: list[tuple[str, str]] = []

    async def _perform(self, calls: Sequence[Call[Any]], *given: Any) -> list[Any]:
        return [self._answer(call) for call in calls]

    def _answer(self, call: Call[Any]) -> Any:
        request = call.build(1.0)
        self.sent.append((call.method, getattr(request, "name", "")))
        if call.method == "ModelConfig":
            return facts(Model(request.name), self.encoder)
        return True

    @property
    def configs_read(self) -> list[str]:
        read = [name for method, name in self.sent if method == "ModelConfig"]
        self.sent.clear()
        return read


def facts(model: Model, encoder: str) -> ModelFacts:
    return ModelFacts(model, 8, {"encoder_sha256": encoder, "max_passages": "4", "lexical_weight": "0.3"})


async def test_a_report_leaves_requests_what_they_know_of_the_models() -> None:
    client = Servers("e" * 64)
    assert await client.encoder_sha256() == "e" * 64
    client._facts_of().put(facts(Model.EMBED_QUERY, "e" * 64))
    assert client.configs_read == ["rerank"]
    assert (await client.health()).encoder_sha256 == "e" * 64
    assert client.configs_read == ["rerank"], "a report is about now"
    assert await client.encoder_sha256() == "e" * 64
    assert client._facts_of().get(Model.EMBED_QUERY) is not None
    assert client.configs_read == []


async def test_a_report_notices_a_changed_model_and_then_nothing_of_before_is_held_true() -> None:
    client = Servers("e" * 64)
    await client.encoder_sha256()
    client._facts_of().put(facts(Model.EMBED_QUERY, "e" * 64))
    client.encoder = "f" * 64
    assert (await client.health()).encoder_sha256 == "f" * 64
    assert client._facts_of().get(Model.EMBED_QUERY) is None
    client.sent.clear()
    assert await client.encoder_sha256() == "f" * 64
    assert client.configs_read == []


def test_a_report_of_a_reranker_whose_config_cannot_be_read_leaves_what_is_known() -> None:
    known = FactsCache()
    known.put(facts(Model.RERANK, "e" * 64))
    plan = plans.health(known, with_retrieval=False)
    calls = next(plan)
    try:
        while True:
            answer: Callable[[], Any] = lambda: plan.send([True] * len(calls))  # noqa: E731, B023
            if calls[0].method == "ModelConfig":
                answer = lambda: plan.throw(ServerUnavailableError("gone"))  # noqa: E731
            calls = answer()
    except StopIteration as end:
        found: HealthReport = end.value
    assert found.problems == ("gone",)
    assert known.get(Model.RERANK) is not None
