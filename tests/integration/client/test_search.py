"""``search`` through a real Triton and a real sidecar."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from resrank.client import F
from resrank.core.errors import InvalidInputError, RetrievalError
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1.retrieval_pb2_grpc import RetrievalServiceStub
from resrank.stack.cli.app import run
from resrank.stack.sidecar_process import SidecarProcess
from resrank.stack.triton_process import TritonProcess

# id: title, text, stored vector
PASSAGES = {
    "alpha": ("Alpha", "aardvark eats ants", [3.0, 0.5, 0.0, 0.0]),
    "beta": ("Beta", "badgers bite", [0.5, 3.0, 0.0, 0.0]),
    "gamma": ("Gamma", "cats climb", [0.0, 0.0, 3.0, 1.0]),
    "delta": ("Delta", "ants and badgers dig", [1.0, 1.0, 0.0, 0.5]),
    "omega": ("Omega", "ants dig deep", [2.0, 0.0, 0.0, 2.0]),
    "sigma": ("Sigma", "dogs dig", [0.0, 0.5, 0.0, 3.0]),
}


def fill(address: str, encoder: str) -> None:
    records = [
        pb.Record(
            id=key,
            title=title,
            text=text,
            embedding=np.array(vector, "<f2").tobytes(),
            values={"letters": pb.Value(number=len(text)), "dig": pb.Value(bool="dig" in text)},
        )
        for key, (title, text, vector) in PASSAGES.items()
    ]
    with grpc.insecure_channel(address) as channel:
        RetrievalServiceStub(channel).Upsert(
            iter([pb.UpsertRequest(encoder_sha256=encoder, dimension=4, records=records)]), timeout=20.0
        )


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path_factory.mktemp("index")) as process:
        fill(process.address, "e" * 64)
        yield process


@pytest.fixture
def client(make: Any, triton: TritonProcess, sidecar: SidecarProcess) -> Any:
    return make(triton.grpc_address, retrieval=sidecar.address)


def cosines(query: str) -> dict[str, float]:
    """Of the stored vectors with what the server's ``embed_query`` makes of the query, computed here."""
    vector = np.array([query.count(letter) + 0.01 for letter in "abcd"], np.float32)
    stored = {key: np.array(entry[2]) for key, entry in PASSAGES.items()}
    return {
        key: float(vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)) for key, other in stored.items()
    }


def test_dense_search_without_reranking_is_the_retrievers_order(client: Any) -> None:
    result = client.search("aab", 3, mode="dense", rerank=False)
    expected = cosines("aab")
    assert [passage.id for passage in result.passages] == sorted(expected, key=lambda key: -expected[key])[:3]
    for place, passage in enumerate(result.passages, start=1):
        assert passage.score == pytest.approx(expected[passage.id], abs=2e-3)
        assert (passage.rank, passage.candidate_rank, passage.candidate_score) == (place, place, passage.score)
        assert (passage.title, passage.text) == PASSAGES[passage.id][:2]
    assert list(result.timings) == ["embed_query", "retrieve", "total"]
    assert not result.reranked


def test_candidates_are_reranked_in_blocks_and_keep_their_rank_before(client: Any) -> None:
    result = client.search("dda", 6, candidates=6, mode="dense")
    found = cosines("dda")
    retrieved = sorted(found, key=lambda key: -found[key])
    # The reranker of these tests: cosine with the first axis, less a thousandth for each place in a pass of five.
    expected = {
        key: PASSAGES[key][2][0] / np.linalg.norm(PASSAGES[key][2]) - 0.001 * (place % 5)
        for place, key in enumerate(retrieved)
    }
    assert [passage.id for passage in result.passages] == sorted(expected, key=lambda key: -expected[key])
    for passage in result.passages:
        assert passage.score == pytest.approx(expected[passage.id], abs=1e-6)
        assert retrieved[passage.candidate_rank - 1] == passage.id
    assert list(result.timings) == ["embed_query", "retrieve", "rerank", "total"]
    assert sum(result.timings[stage] for stage in ("embed_query", "retrieve", "rerank")) <= result.timings["total"]


def test_lexical_search_finds_words_and_needs_no_triton(make: Any, sidecar: SidecarProcess) -> None:
    client = make("127.0.0.1:1", retrieval=sidecar.address)
    result = client.search("badgers", mode="lexical", rerank=False)
    assert {passage.id for passage in result.passages} == {"beta", "delta"}
    assert list(result.timings) == ["retrieve", "total"]


def test_hybrid_search_ranks_what_both_ways_find(client: Any) -> None:
    result = client.search("ants", 2, mode="hybrid", rerank=False)
    assert len(result.passages) == 2
    assert result.passages[0].score >= result.passages[1].score


@pytest.mark.parametrize("weight", [None, 0.0, 2.0])
def test_hybrid_keeps_the_lexical_score_from_retrieval_to_the_final_order(client: Any, weight: float | None) -> None:
    query = "ants dig"
    words = client.search(query, 6, candidates=6, mode="lexical", rerank=False).passages
    bm25 = {passage.id: passage.score for passage in words}
    assert set(bm25) == {"alpha", "delta", "omega", "sigma"}
    used = 0.3 if weight is None else weight
    shares = {key: used * bm25.get(key, 0.0) / max(bm25.values()) for key in PASSAGES}

    found = client.search(query, 6, candidates=6, rerank=False, lexical_weight=weight)
    joint = {key: cosine + shares[key] for key, cosine in cosines(query).items()}
    assert [passage.id for passage in found.passages] == sorted(joint, key=lambda key: -joint[key])
    for passage in found.passages:
        assert passage.score == passage.candidate_score == pytest.approx(joint[passage.id], abs=2e-3)
        assert passage.dense_score == pytest.approx(cosines(query)[passage.id], abs=2e-3)
        assert passage.lexical_score == pytest.approx(bm25.get(passage.id, 0.0), rel=1e-5)
        assert passage.rerank_score is None

    reranked = client.search(query, 6, candidates=6, lexical_weight=weight).passages
    for passage in reranked:
        alone = PASSAGES[passage.id][2][0] / np.linalg.norm(PASSAGES[passage.id][2]) - 0.001 * (passage.index % 5)
        assert passage.rerank_score == pytest.approx(alone, abs=1e-6)
        assert passage.score == pytest.approx(alone + shares[passage.id], abs=1e-5)
    assert [passage.score for passage in reranked] == sorted((p.score for p in reranked), reverse=True)


def test_ranks_can_be_fused_instead(client: Any) -> None:
    found = client.search("ants", 6, candidates=6, rerank=False, fusion="rrf").passages
    by_vector = [p.id for p in client.search("ants", 6, candidates=6, rerank=False, mode="dense").passages]
    by_word = [p.id for p in client.search("ants", 6, candidates=6, rerank=False, mode="lexical").passages]
    expected = {
        key: 1 / (61 + by_vector.index(key)) + (1 / (61 + by_word.index(key)) if key in by_word else 0)
        for key in PASSAGES
    }
    assert {passage.id: passage.score for passage in found} == pytest.approx(expected)


def test_no_match_is_an_empty_result(client: Any) -> None:
    result = client.search("zebra", mode="lexical")
    assert result.passages == ()


def test_an_index_of_another_encoder_is_refused_with_both_hashes(
    make: Any, triton: TritonProcess, tmp_path: Path
) -> None:
    with SidecarProcess(tmp_path / "index") as foreign:
        fill(foreign.address, "f" * 64)
        client = make(triton.grpc_address, retrieval=foreign.address)
        for mode in ("dense", "lexical", "hybrid"):
            with pytest.raises(RetrievalError) as caught:
                client.search("ants", mode=mode)
            assert "e" * 64 in str(caught.value)
            assert "f" * 64 in str(caught.value)
        report = client.health()
    assert not report.ok
    assert "f" * 64 in report.problems[0]
    assert report.retrieval.passages == len(PASSAGES)


def test_the_servers_route_is_told_what_is_wanted(client: Any) -> None:
    with pytest.raises(InvalidInputError, match="TOLD") as caught:
        client.search("ants", 2, candidates=3, fusion="rrf", lexical_weight=0.7, rerank=False, route="server")
    told = json.loads(caught.value.problem)
    assert {name: told[name] for name in ("k", "candidates", "mode", "fusion", "lexical_weight", "rerank")} == {
        **{"k": 2, "candidates": 3, "mode": "hybrid"},
        **{"fusion": "rrf", "lexical_weight": 0.7, "rerank": False},
    }
    with pytest.raises(InvalidInputError, match="TOLD") as caught:
        client.search("ants", filter=(F("a") >= 2) & ~(F("b") == "é"), include_metadata=True, route="server")
    told = json.loads(caught.value.problem)
    assert (told["filter"], told["include_metadata"]) == ('a >= 2 and not b = "é"', True)


def test_bad_sizes_and_a_missing_sidecar_are_invalid_input(client: Any, make: Any, triton: TritonProcess) -> None:
    for options, field in (
        ({"k": 0}, "k"),
        ({"k": 11, "candidates": 10}, "k"),
        ({"candidates": 1001}, "candidates"),
        ({"mode": "fuzzy"}, "mode"),
        ({"fusion": "sum"}, "fusion"),
        ({"lexical_weight": -1}, "lexical_weight"),
        ({"k": "2"}, "k"),
        ({"filter": "year >="}, "filter"),
        ({"filter": {"year": 2020}}, "filter"),
        ({"filter": F("year") >= 2020}, "filter"),  # there is none
        ({"include_metadata": 1}, "include_metadata"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            client.search("ants", **options)
        assert caught.value.field == field
    with pytest.raises(InvalidInputError, match="retrieval"):
        make(triton.grpc_address).search("ants")


def test_the_command_prints_json_or_a_table(
    triton: TritonProcess, sidecar: SidecarProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = ["--triton-url", triton.grpc_address, "--retrieval-url", sidecar.address]
    assert run(["search", "dda", "--k", "2", "--mode", "dense", "--output", "json", *servers]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [passage["rank"] for passage in result["passages"]] == [1, 2]
    assert list(result["timings"]) == ["embed_query", "retrieve", "rerank", "total"]
    best = result["passages"][0]

    assert run(["search", "dda", "--k", "2", "--mode", "dense", *servers]) == 0
    header, first, *_, stages = capsys.readouterr().out.splitlines()
    assert header.split() == ["rank", "score", "rerank", "dense", "before", "id", "title"]
    parts = (f"{best[name]:.4f}" for name in ("score", "rerank_score", "dense_score"))
    row = ["1", *parts, str(best["candidate_rank"]), best["id"], best["title"]]
    assert first.split() == row
    assert re.fullmatch(r"embed query [\d.]+ ms · retrieve [\d.]+ ms · rerank [\d.]+ ms · total [\d.]+ ms", stages)


def test_the_command_filters_and_shows_metadata(sidecar: SidecarProcess, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["search", "ants dig", "--mode", "lexical", "--no-rerank", "--retrieval-url", sidecar.address]
    assert run([*command, "--filter", "dig = true and letters < 20", "--metadata"]) == 0
    header, *rows, _ = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "metadata"
    assert {row.split()[4] for row in rows} == {"omega", "sigma"}
    assert {row.rstrip().split("  ")[-1] for row in rows} == {
        '{"dig": true, "letters": 13}',
        '{"dig": true, "letters": 8}',
    }
    assert run([*command, "--filter", "dig exists", "--metadata", "--output", "json"]) == 0
    passages = json.loads(capsys.readouterr().out)["passages"]
    assert {passage["id"]: passage["metadata"]["dig"] for passage in passages}["alpha"] is False
    for condition, sentence in (
        ("dig = ", "filter: column 7: expected a value, found the end"),
        ("dug = true", "filter: no record has the field dug: there are dig (bool), letters (number)"),
        ("letters = few", 'filter: letters = "few": the field is a number, the value a string'),
    ):
        assert run([*command, "--filter", condition]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())


def test_the_commands_exit_codes_tell_bad_input_from_a_server_that_is_down(
    sidecar: SidecarProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESRANK_TRITON_URL", "127.0.0.1:1")
    monkeypatch.setenv("RESRANK_RETRIEVAL_URL", sidecar.address)
    monkeypatch.setenv("RESRANK_TIMEOUT", "5")
    assert run(["search", " "]) == 2
    assert "QUERY: empty or only whitespace" in capsys.readouterr().err
    assert run(["search", "ants"]) == 3
    assert run(["search", "ants", "--mode", "lexical", "--no-rerank"]) == 0
    assert "Alpha" in capsys.readouterr().out
