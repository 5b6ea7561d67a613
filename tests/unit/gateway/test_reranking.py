"""What becomes of documents that the models refuse, and of a ranking that nobody can explain any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from resrank.client import RerankResult
from resrank.client.deadline import Deadline
from resrank.core.errors import InvalidInputError, Place, ServerUnavailableError

from .conftest import DecidedClient, Serve, ranked

Ask = tuple[str, dict[str, Any]]
ASKED: list[Ask] = [
    ("/v1/rerank", {"query": "q", "documents": ["a", "b"]}),
    ("/v1/search", {"query": "q", "k": 2}),
]


@pytest.fixture
def refuse(client: DecidedClient, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``refuse(text)``: the models refuse it, and each other that begins so, one a call."""

    def refuse(text: str) -> None:
        async def rerank(query: str, candidates: Any = None, **given: Any) -> RerankResult:
            for index, passage in enumerate(given["passages"]):
                if passage.startswith(text):
                    raise InvalidInputError(Place("PASSAGES", (index,)), "no tokens")
            return RerankResult(ranked(len(given["passages"])), {"total": 2.0})

        monkeypatch.setattr(client, "rerank", rerank)

    return refuse


async def test_empty_documents_are_no_refusals_of_the_models(serve: Serve, refuse: Callable[[str], None]) -> None:
    refuse("bad")
    async with serve() as http:
        answer = await http.post("/v1/rerank", json={"query": "q", "documents": [""] * 9 + ["bad", "a"]})
        assert answer.status_code == 200, answer.text
        assert [each["index"] for each in answer.json()["meta"]["unusable"]] == list(range(10))
        assert answer.json()["results"][0]["index"] == 10
        answer = await http.post("/v1/rerank", json={"query": "q", "documents": ["bad"] * 8 + ["a"]})
        assert answer.status_code == 200
        answer = await http.post("/v1/rerank", json={"query": "q", "documents": ["a"] + ["bad"] * 9})
        assert answer.json()["message"] == "documents[9]: no tokens"


async def test_a_top_n_of_0_is_all(serve: Serve) -> None:
    async with serve() as http:
        for top_n, count in ((0, 3), (2, 2)):
            answer = await http.post("/v1/rerank", json={"query": "q", "documents": ["a", "b", "c"], "top_n": top_n})
            assert len(answer.json()["results"]) == count


@pytest.mark.parametrize(("path", "body"), ASKED)
@pytest.mark.parametrize("silent", [("calibration",), ("calibration", "lexical_weight")])
async def test_a_finished_order_does_not_need_to_be_explained(
    serve: Serve, client: DecidedClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], silent: Any
) -> None:
    async def down(**given: Any) -> None:
        raise ServerUnavailableError("no server answers")

    for method in silent:
        monkeypatch.setattr(client, method, down)
    async with serve() as http:
        assert (await http.post(path, json=body)).status_code == 503
        answer = await http.post(path, json=body | {"on_failure": "retrieval_order"})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told.get("meta", told)["calibration"] == "1 / (1 + exp(-s))"
    assert len(told.get("results", told.get("passages"))) == 2


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_all_that_a_request_asks_has_one_budget(
    serve: Serve, client: DecidedClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    left: list[float] = []

    async def calibration(*, triton: str, timeout_s: float) -> None:
        left.append(timeout_s)

    client.delay_s = 0.2
    monkeypatch.setattr(client, "calibration", calibration)
    async with serve() as http:
        assert (await http.post(path, json=body)).status_code == 200
        assert (await http.post(path, json=body | {"on_failure": "retrieval_order"})).status_code == 200
    sent = client.calls[0][1]["timeout_s"]
    assert sent == pytest.approx(10, abs=0.15)
    assert left[0] <= sent - 0.2
    assert left[1] <= sent - 0.4, "something is left for the answer"


async def test_no_time_left_is_a_failure_like_others(
    serve: Serve, client: DecidedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def rerank(query: str, candidates: Any = None, **given: Any) -> RerankResult:
        monkeypatch.setattr(Deadline, "remaining_s", lambda deadline: 0.0)
        return RerankResult(ranked(1), {"total": 2.0})

    async def calibration(**given: Any) -> None:
        raise AssertionError("asked after the end")

    monkeypatch.setattr(client, "rerank", rerank)
    monkeypatch.setattr(client, "calibration", calibration)
    body = {"query": "q", "documents": ["a"], "on_failure": "retrieval_order"}
    async with serve() as http:
        assert (await http.post("/v1/rerank", json=body)).status_code == 200
