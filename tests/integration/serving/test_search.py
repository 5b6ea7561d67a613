"""``search`` in one request: what the client finds step by step, whatever becomes of the sidecar meanwhile."""

from __future__ import annotations

import asyncio
import os
import runpy
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from resrank.client import AsyncResRankClient, F, ResRankClient, SearchResult
from resrank.core.errors import (
    CollectionNotFoundError,
    DeadlineExceededError,
    InvalidInputError,
    RetrievalError,
    ServerUnavailableError,
)
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1.retrieval_pb2_grpc import RetrievalServiceStub
from resrank.stack.cli.app import run
from resrank.stack.sidecar_process import SidecarProcess
from support.tiny_checkpoint import SENTENCES
from support.triton_requests import texts

from .conftest import Searching, Served

QUERY = "two astronauts walked on the moon"
PASSAGES = [f"{SENTENCES[place % len(SENTENCES)]} {place}" for place in range(40)]
CANDIDATES = 35  # three passes of at most 16


def fill(address: str, encoder: str, vectors: np.ndarray, collection: str = "") -> None:
    records = [
        pb.Record(
            id=f"p{place}",
            title=f"Passage {place}",
            text=text,
            embedding=vector.astype("<f2").tobytes(),
            metadata={"lang": ("de", "en")[place % 2]},
            values={
                "place": pb.Value(number=place),
                "tags": pb.Value(strings=pb.StringList(values=["é", "x"][: place % 3])),
            },
        )
        for place, (text, vector) in enumerate(zip(PASSAGES, vectors, strict=False))
    ]
    batch = pb.UpsertRequest(encoder_sha256=encoder, dimension=vectors.shape[1], records=records, collection=collection)
    with grpc.insecure_channel(address) as channel:
        RetrievalServiceStub(channel).Upsert(iter([batch]), timeout=20.0)


@pytest.fixture(scope="module")
def vectors(searching: Searching) -> np.ndarray:
    return np.stack([searching.reference.encode(text) for text in PASSAGES])


@pytest.fixture(scope="module")
def sidecar(
    searching: Searching, vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path_factory.mktemp("search") / "index", socket=searching.socket) as process:
        with ResRankClient(searching.address) as client:
            fill(process.address, client.encoder_sha256(), vectors)
        yield process


@pytest.fixture
def client(searching: Searching, sidecar: SidecarProcess) -> Iterator[ResRankClient]:
    with ResRankClient(searching.address, retrieval=sidecar.address, max_attempts=1) as made:
        yield made


def require_equal(found: SearchResult, expected: SearchResult) -> None:
    assert [passage.id for passage in found.passages] == [passage.id for passage in expected.passages]
    for mine, other in zip(found.passages, expected.passages, strict=True):
        assert mine.score == pytest.approx(other.score, abs=1e-6)
        assert (mine.rank, mine.index, mine.title, mine.text) == (other.rank, other.index, other.title, other.text)
        assert (mine.candidate_rank, mine.candidate_score) == (other.candidate_rank, other.candidate_score)
        assert (mine.dense_score, mine.lexical_score) == (other.dense_score, other.lexical_score)
        assert mine.rerank_score == pytest.approx(other.rerank_score, abs=1e-6)
        assert mine.metadata == other.metadata
    assert list(found.timings) == list(expected.timings)
    assert (found.query, found.mode, found.reranked) == (expected.query, expected.mode, expected.reranked)


@pytest.mark.parametrize("rerank", [True, False])
@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_both_routes_give_the_same(client: ResRankClient, mode: Any, rerank: bool) -> None:
    options: dict[str, Any] = {"candidates": CANDIDATES, "mode": mode, "rerank": rerank}
    expected = client.search(QUERY, 12, **options)
    assert len(expected.passages) == 12 or mode == "lexical"
    require_equal(client.search(QUERY, 12, **options, route="server"), expected)


def test_neither_route_encodes_a_query_twice(client: ResRankClient, searching: Searching) -> None:
    def encoded() -> int:
        return int(searching.counters()["encoder"].rows)

    before = encoded()
    client.search(QUERY, 12, candidates=CANDIDATES, mode="dense")
    assert encoded() == before + 1
    client.search(QUERY, 12, candidates=CANDIDATES, mode="dense", route="server")
    assert encoded() == before + 2


def test_both_routes_keep_the_lexical_score_as_they_are_told(client: ResRankClient) -> None:
    options: dict[str, Any] = {"candidates": CANDIDATES, "lexical_weight": 1.5}
    expected = client.search(QUERY, 12, **options)
    best = max(passage.lexical_score or 0.0 for passage in client.search(QUERY, 40, mode="lexical").passages)
    for passage in expected.passages:
        assert passage.rerank_score is not None
        assert passage.lexical_score is not None
        joint = passage.rerank_score + 1.5 * passage.lexical_score / best
        assert passage.score == pytest.approx(joint, abs=1e-5)
    require_equal(client.search(QUERY, 12, **options, route="server"), expected)
    ranks: dict[str, Any] = {"candidates": CANDIDATES, "fusion": "rrf", "lexical_weight": 0.0}
    require_equal(client.search(QUERY, 12, **ranks, route="server"), client.search(QUERY, 12, **ranks))


def test_a_collection_is_searched_by_either_route(
    client: ResRankClient, searching: Searching, sidecar: SidecarProcess, vectors: np.ndarray
) -> None:
    with grpc.insecure_channel(sidecar.address) as channel:
        stub = RetrievalServiceStub(channel)
        stub.CreateCollection(pb.CreateCollectionRequest(collection="few"))
        stub.SetAlias(pb.SetAliasRequest(alias=pb.Alias(name="alias", collection="few")))
    fill(sidecar.address, client.encoder_sha256(), vectors[:3], "few")
    found = client.search(QUERY, collection="alias")
    assert (len(found.passages), found.collection) == (3, "few")
    require_equal(client.search(QUERY, collection="alias", route="server"), found)
    with ResRankClient(searching.address) as alone:  # without a sidecar's address Triton's resolves the name
        require_equal(alone.search(QUERY, collection="alias", route="server"), found)
    for route in ("client", "server"):
        with pytest.raises(CollectionNotFoundError, match="no collection and no alias 'none'"):
            client.search(QUERY, collection="none", route=route)


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_both_routes_find_what_a_filter_keeps_with_its_metadata(client: ResRankClient, mode: Any) -> None:
    condition = ((F("place") >= 20) & F("lang").is_in("de", "fr")) | (F("tags") == "é") & (F("place") < 3)
    options: dict[str, Any] = {"candidates": CANDIDATES, "mode": mode, "filter": condition, "include_metadata": True}
    expected = client.search(QUERY, 12, **options)
    kept = {f"p{place}": place for place in (1, 2, *range(20, 40, 2))}
    assert {passage.id for passage in expected.passages} == set(kept) or mode == "lexical"
    for passage in expected.passages:
        place = kept[passage.id or ""]
        metadata = {"place": float(place), "lang": ("de", "en")[place % 2], "tags": ("é", "x")[: place % 3]}
        assert passage.metadata == metadata
    require_equal(client.search(QUERY, 12, **options, route="server"), expected)
    as_text = {**options, "filter": "place >= 20 and lang in (de, fr) or tags = 'é' and place < 3"}
    require_equal(client.search(QUERY, 12, **as_text), expected)
    assert client.search(QUERY, 1, mode=mode).passages[0].metadata is None


def test_stored_passages_are_reranked_as_a_search_ranks_them(client: ResRankClient) -> None:
    """By id, with what is not in the index named; the list has three passes."""
    found = client.search(QUERY, CANDIDATES, candidates=CANDIDATES, route="server")
    retrieved = sorted(found.passages, key=lambda passage: passage.candidate_rank)
    ids = [passage.id or "" for passage in retrieved]
    result = client.rerank_stored(QUERY, ["p-none", *ids, "q-none"], include_texts=True)
    assert result.missing_ids == ("p-none", "q-none")
    assert list(result.timings) == ["retrieve", "rerank", "total"]
    assert [passage.id for passage in result.passages] == [passage.id for passage in found.passages]
    for mine, other in zip(result.passages, found.passages, strict=True):
        assert mine.score == pytest.approx(other.score, abs=1e-6)
        assert mine.rerank_score == pytest.approx(other.rerank_score, abs=1e-6)
        assert (mine.title, mine.text, mine.lexical_score) == (other.title, other.text, other.lexical_score)
        assert mine.index == ids.index(mine.id or "") + 1
    alone = client.rerank_stored(QUERY, ids, lexical_weight=0.0)
    assert [passage.score for passage in alone.passages] == [passage.rerank_score for passage in alone.passages]
    assert alone.passages[0].lexical_score is None
    assert alone.passages[0].text is None
    none = client.rerank_stored(QUERY, ["p-none"])
    assert (none.passages, none.missing_ids) == ((), ("p-none",))


@pytest.mark.parametrize(
    ("ids", "field"),
    [([], "ids"), ("p1", "ids"), (["p1", "p2", "p1"], "ids[2]"), (["p1", ""], "ids[1]"), (["p1", 2], "ids[1]")],
)
def test_ids_that_no_passage_can_have_are_refused(client: ResRankClient, ids: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        client.rerank_stored(QUERY, ids)
    assert caught.value.field == field


def test_the_scores_are_the_references(client: ResRankClient, searching: Searching, vectors: np.ndarray) -> None:
    """Of candidates in dense order, in passes of 16."""
    found = client.search(QUERY, CANDIDATES, candidates=CANDIDATES, mode="dense", route="server")
    e_q = searching.reference.encode(QUERY)
    cosines = vectors @ e_q / np.linalg.norm(vectors, axis=1) / np.linalg.norm(e_q)
    order = np.argsort(-cosines, kind="stable")[:CANDIDATES]
    stored = vectors.astype(np.float16)[order]
    scores = np.concatenate([searching.reference.rerank(QUERY, stored[start : start + 16]) for start in (0, 16, 32)])
    assert len(found.passages) == CANDIDATES
    for passage in found.passages:
        assert passage.score == pytest.approx(scores[passage.index], abs=2e-3)


async def test_the_asyncio_client_has_the_route_too_and_needs_no_address_of_the_sidecar(
    searching: Searching, client: ResRankClient
) -> None:
    expected = await asyncio.to_thread(client.search, QUERY, 5, candidates=CANDIDATES)
    async with AsyncResRankClient(searching.address) as other:
        answers = await asyncio.gather(
            *(other.search(QUERY, 5, candidates=CANDIDATES, route="server") for _ in range(12))
        )
    for found in answers:
        assert [passage.id for passage in found.passages] == [passage.id for passage in expected.passages]


def test_a_plain_client_gets_what_it_asks_for(searching: Searching, client: ResRankClient) -> None:
    expected = client.search(QUERY, 3, candidates=20, mode="dense")
    parameters = {"k": 3, "candidates": 20, "mode": "dense"}
    everything = searching.client.infer("search", [texts("QUERY", [QUERY])], parameters=parameters)
    ids = [passage.id.encode() for passage in expected.passages if passage.id]
    assert everything.as_numpy("IDS").tolist() == [ids]
    assert everything.as_numpy("TEXTS").tolist() == [[PASSAGES[int(i[1:])].encode() for i in ids]]
    assert everything.as_numpy("SCORES").shape == everything.as_numpy("CANDIDATE_RANKS").shape == (1, 3)
    assert everything.as_numpy("STAGE_MS").shape == (1, 3)
    wanted = [triton_grpc.InferRequestedOutput(name) for name in ("IDS", "SCORES")]
    little = searching.client.infer("search", [texts("QUERY", [QUERY])], outputs=wanted, parameters=parameters)
    assert little.as_numpy("IDS").tolist() == [ids]
    assert little.as_numpy("TEXTS") is None


def test_the_example_prints_what_was_found(
    searching: Searching, client: ResRankClient, capsys: pytest.CaptureFixture[str]
) -> None:
    example = Path(__file__).parents[3] / "examples" / "plain_triton_search.py"
    runpy.run_path(str(example))["main"](QUERY, searching.address)
    *rows, embedded, retrieved, reranked = capsys.readouterr().out.splitlines()
    expected = client.search(QUERY, 5)
    assert [row.split()[3] for row in rows] == [passage.id for passage in expected.passages]
    assert [line.split()[0] for line in (embedded, retrieved, reranked)] == ["embed_query", "retrieve", "rerank"]


@pytest.mark.parametrize(
    ("query", "options", "field"),
    [
        ("river " * 100, {}, "QUERY"),
        ("?!", {"mode": "lexical"}, "text"),
    ],
)
def test_both_routes_refuse_alike(client: ResRankClient, query: str, options: dict[str, Any], field: str) -> None:
    messages = []
    for route in ("client", "server"):
        with pytest.raises(InvalidInputError) as caught:
            client.search(query, route=route, **options)  # type: ignore[arg-type]
        assert caught.value.field == field
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    with pytest.raises(InvalidInputError, match="route: unknown"):
        client.search(QUERY, route="both")  # type: ignore[arg-type]


def test_a_wrong_parameter_is_named_to_plain_clients(searching: Searching, sidecar: SidecarProcess) -> None:
    for parameters, message in (
        ({"k": "3"}, 'k: must be a request parameter that is a whole number, not "3"'),
        ({"candidates": 1001}, "candidates: too large (limit 1000, got 1001)"),
    ):
        with pytest.raises(triton_grpc.InferenceServerException) as caught:
            searching.client.infer("search", [texts("QUERY", [QUERY])], parameters=parameters)
        assert (caught.value.status(), caught.value.message()) == ("StatusCode.INVALID_ARGUMENT", message)


def test_a_triton_that_knows_no_sidecar_says_so_and_serves_the_rest(served: Served) -> None:
    with ResRankClient(served.address) as client:
        with pytest.raises(RetrievalError, match="started without RESRANK_RETRIEVAL_SOCKET"):
            client.search(QUERY, route="server")
        assert client.rerank(QUERY, passages=PASSAGES[:2]).passages


def test_the_command_has_the_route(
    searching: Searching, sidecar: SidecarProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = ["--triton-url", searching.address, "--retrieval-url", "127.0.0.1:1"]
    assert run(["search", QUERY, "--k", "2", "--route", "server", *servers]) == 0
    assert "Passage" in capsys.readouterr().out


def test_a_sidecar_that_does_not_answer_costs_the_callers_time_and_no_more(
    client: ResRankClient, sidecar: SidecarProcess
) -> None:
    os.kill(sidecar.pid, signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineExceededError):
            client.search(QUERY, mode="lexical", rerank=False, route="server", timeout_s=0.5)
    finally:
        os.kill(sidecar.pid, signal.SIGCONT)
    assert client.search(QUERY, route="server").passages


def test_whichever_sidecar_comes_back_is_asked_anew(
    searching: Searching, sidecar: SidecarProcess, vectors: np.ndarray, tmp_path: Path
) -> None:
    """Last of the file: it ends the sidecar of the others."""
    with ResRankClient(searching.address, max_attempts=20) as client:  # a sidecar is dialled within a second
        expected = client.search(QUERY, route="server")
        os.kill(sidecar.pid, signal.SIGKILL)
        sidecar.stop()
        with (
            ResRankClient(searching.address, max_attempts=1) as once,
            pytest.raises(ServerUnavailableError, match="the retrieval sidecar does not answer at unix:"),
        ):
            once.search(QUERY, route="server")
        with SidecarProcess(tmp_path / "empty", socket=searching.socket):
            assert client.search(QUERY, route="server").passages == ()
        with SidecarProcess(tmp_path / "foreign", socket=searching.socket) as foreign:
            fill(foreign.address, "f" * 64, vectors)
            for mode in ("dense", "lexical"):
                with pytest.raises(RetrievalError, match="f" * 64):
                    client.search(QUERY, mode=mode, route="server")  # type: ignore[arg-type]
        with SidecarProcess(sidecar.index, socket=searching.socket):
            require_equal(client.search(QUERY, route="server"), expected)
