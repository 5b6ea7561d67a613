"""What HTTP says is what the gRPC client says, in each schema's own words."""

from __future__ import annotations

import asyncio
import base64
import math
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from axe_playwright_python.sync_playwright import Axe
from hypothesis import HealthCheck, given, settings
from playwright.sync_api import Page

from resrank.client import RerankResult
from resrank.client.integrations.ranking import PlacedDocument, RankingOptions, rank
from resrank.client.integrations.searching import SearchingOptions, search
from resrank.client.sidecar import AsyncSidecar
from resrank.client.sidecar_catalog import SidecarCatalog
from resrank.core.truncation import Side, Truncation
from resrank.serving.load_metrics import PUBLISH_EVERY_S
from support.browser import open_page
from support.recipes import KEY, SERVERS, Asked
from support.tiny_checkpoint import SENTENCES

from .conftest import PASSAGES, QUERY, Served

TEXTS = [*SENTENCES, "The moon is far away."]


@pytest.fixture(scope="module")
def expected(served: Served) -> RerankResult:
    return served.client.rerank(QUERY, passages=TEXTS)


def post(served: Served, path: str, body: dict[str, Any], status: int = 200) -> Any:
    answer = served.http.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def relevance(score: float) -> float:
    return 1 / (1 + math.exp(-score))


@pytest.mark.parametrize("path", ["/v2/rerank", "/v1/rerank", "/rerank"])
def test_documents_are_coheres_and_jinas(served: Served, expected: RerankResult, path: str) -> None:
    documents = [TEXTS[0], {"text": TEXTS[1]}, *TEXTS[2:]]
    body = {"model": "resrank", "query": QUERY, "documents": documents, "top_n": 3}
    found = post(served, path, body)
    best = expected.passages[:3]
    assert [result["index"] for result in found["results"]] == [passage.index for passage in best]
    for result, passage in zip(found["results"], best, strict=True):
        assert result["relevance_score"] == pytest.approx(relevance(passage.score), abs=1e-5)
        assert result["score"] == pytest.approx(passage.score, abs=1e-5)
        assert result.get("document") == (None if path == "/v2/rerank" else {"text": TEXTS[passage.index]})
    assert found["model"] == "resrank"
    assert found["meta"]["reranked"] is True
    assert found["meta"]["calibration"] == "1 / (1 + exp(-s))"
    assert found["meta"]["api_version"] == {"version": "2" if path == "/v2/rerank" else "1"}
    shown = post(served, path, body | {"return_documents": path == "/v2/rerank"})["results"][0]
    assert ("document" in shown) == (path == "/v2/rerank")


def test_texts_are_teis(served: Served, expected: RerankResult) -> None:
    found = post(served, "/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True})
    assert [rank["index"] for rank in found] == [passage.index for passage in expected.passages]
    assert [rank["text"] for rank in found] == [TEXTS[passage.index] for passage in expected.passages]
    scores = [rank["score"] for rank in found]
    assert scores == pytest.approx([relevance(passage.score) for passage in expected.passages], abs=1e-5)
    raw = post(served, "/v1/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": True})
    assert 1 / (1 + np.exp(-np.array([rank["score"] for rank in raw]))) == pytest.approx(scores, abs=1e-5)
    assert set(raw[0]) == {"index", "score"}


def test_passages_are_nims(served: Served, expected: RerankResult) -> None:
    body = {"query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS], "truncate": "END"}
    found = post(served, "/v1/ranking", body)["rankings"]
    assert [rank["index"] for rank in found] == [passage.index for passage in expected.passages]
    logits = np.array([rank["logit"] for rank in found])
    assert 1 / (1 + np.exp(-logits)) == pytest.approx([relevance(p.score) for p in expected.passages], abs=1e-5)


def test_a_property_is_weaviates_whose_scores_stand_in_the_order_of_the_request(
    served: Served, expected: RerankResult
) -> None:
    found = post(served, "/rerank", {"query": QUERY, "documents": TEXTS, "property": ""})
    assert found["query"] == QUERY
    assert [score["document"] for score in found["scores"]] == TEXTS
    by_place = sorted(expected.passages, key=lambda passage: passage.index)
    scores = [score["score"] for score in found["scores"]]
    assert scores == pytest.approx([relevance(passage.score) for passage in by_place], abs=1e-5)


def test_a_document_that_cannot_be_ranked_stands_last_and_fails_no_other(served: Served) -> None:
    body = {"query": QUERY, "documents": ["", TEXTS[0], " \n", TEXTS[1]], "return_documents": True}
    found = post(served, "/v2/rerank", body)
    assert sorted(result["index"] for result in found["results"][:2]) == [1, 3]
    assert [(r["index"], r["relevance_score"], r["document"]) for r in found["results"][2:]] == [
        (0, 0.0, {"text": ""}),
        (2, 0.0, {"text": " \n"}),
    ]
    assert found["meta"]["unusable"] == [{"index": index, "problem": "empty or only whitespace"} for index in (0, 2)]
    assert found["meta"]["warnings"][0] == "documents[0]: empty or only whitespace; ranked last"
    answer = served.http.post("/rerank", json={"query": QUERY, "texts": ["", TEXTS[0]]})
    assert [rank["index"] for rank in answer.json()] == [1, 0]
    assert answer.headers["x-resrank-unusable"] == "0"
    refused = post(served, "/v2/rerank", body | {"strict": True}, 422)
    assert refused["message"] == "documents[0]: empty or only whitespace"
    nothing = post(served, "/v2/rerank", {"query": QUERY, "documents": ["", ""]})
    assert [result["relevance_score"] for result in nothing["results"]] == [0.0, 0.0]


def test_a_long_document_is_cut_at_the_side_that_is_wanted_and_named(served: Served) -> None:
    """At the right the end does not matter, at the left the beginning; the model reads 64 tokens."""
    head, other, tail = (" ".join([word] * 80) for word in ("river", "moon", "fox"))
    documents = [TEXTS[0], f"{head} {tail}", f"{head} {other}", f"{other} {tail}", "x" * 70_000]

    def scores(**given: Any) -> tuple[list[float], dict[str, Any]]:
        answer = post(served, "/v2/rerank", {"query": QUERY, "documents": documents, **given})
        by_place = sorted(answer["results"], key=lambda result: result["index"])
        return [result["score"] for result in by_place], answer["meta"]

    vectors = served.client.embed_passages(documents[:4], truncate=True)
    assert vectors[1] == pytest.approx(vectors[2], abs=1e-6)
    left = served.client.embed_passages(documents[:4], truncate=Truncation(Side.LEFT))
    assert left[1] == pytest.approx(left[3], abs=1e-6)
    assert left[0] == pytest.approx(vectors[0], abs=1e-6)
    for _ in range(2):  # the second time vectors are known
        right, meta = scores()
        assert meta["truncated"] == [1, 2, 3, 4]
        assert meta["warnings"] == ["documents: longer than the model reads, and cut: 1, 2, 3, 4"]
    at_left, _ = scores(truncation_side="left")
    assert at_left != right
    _, meta = scores(max_tokens_per_doc=8)
    assert meta["truncated"] == [0, 1, 2, 3, 4]
    answer = served.http.post("/rerank", json={"query": QUERY, "texts": documents[:2], "truncation_direction": "Left"})
    assert answer.headers["x-resrank-truncated"] == "1"
    refused = post(served, "/rerank", {"query": QUERY, "texts": documents[:2], "truncate": False}, 422)
    assert refused["error"].startswith("texts[1]: too many tokens (limit 64, got ")
    passages = [{"text": text} for text in documents[:2]]
    refused = post(served, "/v1/ranking", {"query": {"text": QUERY}, "passages": passages, "truncate": "NONE"}, 422)
    assert refused["detail"].startswith("passages[1]: too many tokens")
    small = post(served, "/v2/rerank", {"query": QUERY, "documents": documents, "max_tokens_per_doc": 1}, 422)
    assert small["message"].startswith("max_tokens_per_doc: too small")


def test_what_is_less_relevant_than_wanted_is_left_out(served: Served, expected: RerankResult) -> None:
    bound = relevance(expected.passages[2].score) - 1e-4
    found = post(served, "/v2/rerank", {"query": QUERY, "documents": TEXTS, "min_score": bound})
    assert [result["index"] for result in found["results"]] == [p.index for p in expected.passages[:3]]


def test_ids_are_ranked_as_a_search_ranks_them_and_no_passage_is_encoded(served: Served) -> None:
    found = served.client.search(QUERY, 20, candidates=20)
    ids = [passage.id or "" for passage in sorted(found.passages, key=lambda passage: passage.candidate_rank)]
    time.sleep(2 * PUBLISH_EVERY_S)
    before = served.rows("encoder")
    answer = post(served, "/v1/rerank", {"query": QUERY, "document_ids": ["none", *ids]})
    results = answer["results"]
    assert [result.get("id") for result in results[:-1]] == [passage.id for passage in found.passages]
    for result, passage in zip(results, found.passages, strict=False):
        assert result["score"] == pytest.approx(passage.score, abs=1e-5)
        assert result["document"] == {"text": passage.text}
        assert ids[result["index"] - 1] == passage.id
    assert results[-1]["index"] == 0
    assert answer["meta"]["unusable"] == [{"index": 0, "problem": "not in the index"}]
    assert list(answer["meta"]["timings"]) == ["retrieve", "rerank", "total"]
    time.sleep(2 * PUBLISH_EVERY_S)
    assert served.rows("encoder") - before == 1  # the query's, once for two passes of at most 16 candidates
    refused = post(served, "/v1/rerank", {"query": QUERY, "document_ids": [*ids, "none"], "strict": True}, 422)
    assert refused["message"] == f"document_ids[{len(ids)}]: not in the index"
    alone = post(served, "/v2/rerank", {"query": QUERY, "document_ids": ids, "lexical_weight": 0})
    assert "document" not in alone["results"][0]


async def _few(address: str, encoder: str) -> None:
    async with AsyncSidecar(address) as sidecar, AsyncSidecar(address, collection="few") as few:
        await SidecarCatalog(sidecar).create("few")
        await SidecarCatalog(sidecar).set_alias("alias", "few")
        vectors = await sidecar.vectors([passage.id for passage in PASSAGES[:3]])
        await few.upsert(encoder, PASSAGES[:3], np.stack([vectors[passage.id] for passage in PASSAGES[:3]]))


def test_a_collection_is_asked_for_by_name_or_alias(served: Served) -> None:
    asyncio.run(_few(served.stack.sidecar.address, served.client.encoder_sha256()))
    ids = [passage.id for passage in PASSAGES[:4]]
    for name in ("few", "alias"):
        found = post(served, "/v1/search", {"query": QUERY, "collection": name})
        assert (found["collection"], {passage["id"] for passage in found["passages"]}) == ("few", set(ids[:3]))
        answer = post(served, "/v2/rerank", {"query": QUERY, "document_ids": ids, "collection": name})
        assert answer["meta"]["unusable"] == [{"index": 3, "problem": "not in the index"}]
    assert post(served, "/v1/search", {"query": QUERY})["collection"] == "default"
    for body, path in (({}, "/v1/search"), ({"document_ids": ids}, "/v2/rerank")):
        unknown = post(served, path, {"query": QUERY, "collection": "none", **body}, 404)
        assert "there is no collection and no alias 'none'" in str(unknown)
        assert "collection: must be of a-z" in str(post(served, path, {"query": QUERY, "collection": "A", **body}, 422))
    refused = post(served, "/v2/rerank", {"query": QUERY, "documents": TEXTS, "collection": "few"}, 422)
    assert refused["message"] == "collection: is of document_ids, which are in the index; documents are in none"


def test_a_search_has_every_part_of_every_score(served: Served) -> None:
    expected = served.client.search(QUERY, 7, candidates=30, lexical_weight=0.5, route="server")
    found = post(served, "/v1/search", {"query": QUERY, "k": 7, "candidates": 30, "lexical_weight": 0.5})
    assert (found["mode"], found["reranked"]) == ("hybrid", True)
    assert list(found["timings"]) == ["embed_query", "retrieve", "rerank", "total"]
    for passage, other in zip(found["passages"], expected.passages, strict=True):
        parts = ("rank", "id", "title", "text", "candidate_rank")
        assert [passage[name] for name in parts] == [getattr(other, name) for name in parts]
        for name in ("score", "rerank_score", "dense_score", "lexical_score", "candidate_score"):
            assert passage[name] == pytest.approx(getattr(other, name), abs=1e-5), name
        assert passage["relevance_score"] == pytest.approx(relevance(other.score), abs=1e-5)
    best = max(p.lexical_score or 0.0 for p in served.client.search(QUERY, 40, candidates=40, mode="lexical").passages)
    assert found["lexical_weight"] == 0.5
    assert found["max_lexical_score"] == pytest.approx(best, rel=1e-3)
    default = post(served, "/v1/search", {"query": QUERY})
    assert default["lexical_weight"] == served.client.lexical_weight()
    dense = post(served, "/v1/search", {"query": QUERY, "k": 3, "mode": "dense", "rerank": False})
    assert dense["reranked"] is False
    assert dense["passages"][0]["score"] == dense["passages"][0]["dense_score"]
    assert "relevance_score" not in dense["passages"][0]


def test_a_search_finds_what_a_filter_keeps(served: Served) -> None:
    body = {"query": QUERY, "k": 5, "filter": "place >= 30 and even = true", "include_metadata": True}
    found = post(served, "/v1/search", body)
    assert {passage["id"] for passage in found["passages"]} == {"p30", "p32", "p34", "p36", "p38"}
    for passage in found["passages"]:
        assert passage["metadata"] == {"place": float(passage["id"][1:]), "even": True, "tags": ["x"]}
    assert "metadata" not in post(served, "/v1/search", {"query": QUERY, "k": 1})["passages"][0]
    for condition, sentence in (
        ("place >", "filter: column 8: expected a value, found the end"),
        (
            "plaice = 1",
            "filter: no record has the field plaice: there are even (bool), place (number), tags (strings)",
        ),
        (
            "place = '1'",
            'filter: place = "1": the field is a number, the value a string: write a number, without quotes',
        ),
        (
            "not " * 10_000 + "even exists",
            "filter: column 129: nested too deeply, in times of not and ( (limit 32, got 33)",
        ),
    ):
        refused = post(served, "/v1/search", {"query": QUERY, "filter": condition}, 422)
        assert (refused["error"]["message"], refused["error"]["param"]) == (sentence, "filter")


def test_embeddings_are_the_clients(served: Served) -> None:
    queries, passages = served.client.embed_queries(TEXTS), served.client.embed_passages(TEXTS)
    found = post(served, "/v1/embeddings", {"input": TEXTS, "model": "resrank"})
    assert np.array([vector["embedding"] for vector in found["data"]]) == pytest.approx(passages, abs=1e-5)
    packed = post(served, "/v1/embeddings", {"input": TEXTS[0], "encoding_format": "base64", "input_type": "query"})
    vector = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    assert vector == pytest.approx(queries[0], abs=1e-5)
    units = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    tei = post(served, "/embed", {"inputs": TEXTS, "prompt_name": "query"})
    assert np.array(tei) == pytest.approx(units, abs=1e-5)
    plain = post(served, "/embed", {"inputs": TEXTS[1], "normalize": False})
    assert np.array(plain) == pytest.approx(passages[1:2], abs=1e-5)


@pytest.mark.parametrize("server", SERVERS)
def test_a_recipe_is_answered_as_its_server_reads_it(served: Served, server: str) -> None:
    texts = [f'{passage.text} "{passage.id}"' for passage in PASSAGES[: 32 if server == "weaviate" else 40]]
    expected = sorted(served.client.rerank(f'"{QUERY}"', passages=texts).passages, key=lambda passage: passage.index)
    asked: list[Asked] = []

    def ask(request: Asked) -> Any:
        asked.append(request)
        answer = served.http.post(request.path, content=request.body, headers=dict(request.headers))
        assert answer.status_code == 200, answer.text
        return answer.json()

    scores = SERVERS[server](ask, f'"{QUERY}"', texts)
    assert scores == pytest.approx([relevance(passage.score) for passage in expected], abs=1e-5)
    (request,) = asked  # the whole list at once: in pieces its documents would not be read beside each other
    sends_none = {"milvus", "weaviate"}  # which have no key to send here
    assert (request.headers.get("Authorization") == f"Bearer {KEY}") != (server in sends_none)


def test_tokens_that_were_read_are_counted(served: Served) -> None:
    """Once for a text that is known afterwards; of ids the query's alone."""
    texts = [f"Somebody counts the words of text {place} now." for place in range(3)]

    def read(body: dict[str, Any]) -> int:
        return int(post(served, "/v1/rerank", {"query": QUERY, **body})["usage"]["total_tokens"])

    def embedded(inputs: list[str], kind: str) -> int:
        usage = post(served, "/v1/embeddings", {"input": inputs, "input_type": kind})["usage"]
        assert usage["prompt_tokens"] == usage["total_tokens"]
        return int(usage["total_tokens"])

    query, each = embedded([QUERY], "query"), [embedded([text], "document") for text in texts]
    assert embedded(texts, "document") == sum(each)
    assert embedded([f"{QUERY} again"], "query") > query > len(QUERY.split())
    assert embedded(["a text"] * 130, "document") == 130 * embedded(["a text"], "document")  # several requests
    assert read({"documents": [*texts, texts[0]]}) == query + sum(each)
    assert read({"documents": texts}) == query
    assert read({"document_ids": [passage.id for passage in PASSAGES[:5]]}) == query
    cut = "river " * 500
    assert embedded([cut], "document") == 64


def test_adapters_rank_as_the_gateway_does(served: Served) -> None:
    """What the frameworks' components are made of; they themselves are tested where the frameworks are."""
    documents = [TEXTS[0], " ", *TEXTS[1:], TEXTS[0]]
    expected = post(served, "/v1/rerank", {"query": QUERY, "documents": documents})["results"]
    found = rank(served.client, QUERY, documents, RankingOptions())
    assert [each.index for each in found] == [result["index"] for result in expected]
    scores = [each.relevance for each in found]
    assert scores == pytest.approx([result["relevance_score"] for result in expected], abs=1e-5)
    assert found[-1] == PlacedDocument(1, 0.0)
    assert rank(served.client, QUERY, documents, RankingOptions(top_n=2, min_score=scores[0])) == found[:1]
    assert rank(served.client, QUERY, [" ", ""], RankingOptions()) == [PlacedDocument(0, 0.0), PlacedDocument(1, 0.0)]
    ids = ["p3", "none", "p1", "p3", "p2"]
    stored = rank(served.client, QUERY, ids, RankingOptions(stored=True))
    expected = post(served, "/v1/rerank", {"query": QUERY, "document_ids": ids})["results"]
    assert [each.index for each in stored] == [result["index"] for result in expected]
    assert [each.relevance for each in stored] == pytest.approx([r["relevance_score"] for r in expected], abs=1e-5)
    answer = post(served, "/v1/search", {"query": QUERY, "k": 5, "candidates": 20, "min_score": 0.5})["passages"]
    searched = search(served.client, QUERY, 5, SearchingOptions(candidates=20, min_score=0.5))
    assert [each.passage.id for each in searched] == [passage["id"] for passage in answer]
    for each, passage in zip(searched, answer, strict=True):
        assert each.metadata["title"] == passage["title"]
        assert each.relevance == pytest.approx(passage["relevance_score"], abs=1e-5)
    unranked = search(served.client, QUERY, 30, SearchingOptions(candidates=20, rerank=False))
    assert len(unranked) == 30
    assert {each.relevance for each in unranked} == {None}


def test_models_health_and_metrics(served: Served) -> None:
    models = served.http.get("/v1/models").json()["data"]
    assert [(model["id"], model["root"]) for model in models] == [("resrank", served.client.encoder_sha256())]
    assert served.http.get("/v1/models/resrank").json() == models[0]
    for path in ("/health", "/v1/health/live", "/v1/health/ready"):
        assert served.http.get(path).json()["ready"] is True, path
    assert "resrank_gateway_requests_total" in served.http.get("/metrics").text


def test_the_pages_of_the_openapi_document_need_no_other_server(served: Served) -> None:
    for path in ("/docs", "/redoc"):
        page = served.http.get(path).text
        links = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page)
        assert links
        for link in links:
            if not link.startswith("data:"):
                assert link.startswith("/"), f"{path} asks {link}"
                assert served.http.get(link).status_code == 200, link


def test_nothing_but_429_comes_of_64_connections(served: Served) -> None:
    body = {"query": QUERY, "document_ids": [passage.id for passage in PASSAGES[:16]]}

    def ask(_: int) -> list[int]:
        with httpx.Client(base_url=served.http.base_url, timeout=60.0, trust_env=False) as http:
            return [http.post("/v1/rerank", json=body).status_code for _ in range(4)]

    with ThreadPoolExecutor(64) as pool:
        statuses = [status for each in pool.map(ask, range(64)) for status in each]
    assert set(statuses) <= {200, 429}
    assert 200 in statuses


def test_whatever_the_openapi_document_allows_is_answered_and_never_by_500(served: Served, log: Path) -> None:
    schema = schemathesis.openapi.from_dict(served.http.get("/openapi.json").json())
    base = str(served.http.base_url).rstrip("/")
    asked: Counter[str] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=20, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        def answers(case: Any) -> None:
            answer = case.call(base_url=base)
            assert answer.status_code < 500, (case.path, answer.status_code, answer.text)
            asked[case.path] += 1

        answers()
    assert {"/rerank", "/v1/rerank", "/v2/rerank", "/v1/ranking", "/v1/search", "/v1/embeddings", "/embed"} <= set(
        asked
    )
    assert asked.total() > 100
    assert " error=" not in log.read_text()


def titles(page: Page, column: str) -> list[str]:
    return page.locator(f"#{column} .title").all_inner_texts()


def test_the_playground_shows_a_search_before_and_after_and_sorts_by_another_weight(served: Served) -> None:
    """By the keyboard alone, in a real browser that asks nobody but the gateway."""
    found = served.client.search(QUERY, 30, candidates=30, route="server").passages
    best = max(p.lexical_score or 0.0 for p in served.client.search(QUERY, 40, candidates=40, mode="lexical").passages)

    def by(weight: float) -> list[str]:
        scores = {p.title: (p.rerank_score or 0.0) + weight * (p.lexical_score or 0.0) / best for p in found}
        ordered = sorted(found, key=lambda p: (-scores[p.title], p.candidate_rank))
        return [p.title or "" for p in ordered]

    with open_page() as page:
        asked: list[str] = []
        problems: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(str(served.http.base_url))
        page.fill("#candidates", "30")
        page.fill("#shown", "30")
        page.focus("#query")
        page.keyboard.type(QUERY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#after li")
        retrieved = sorted(found, key=lambda passage: passage.candidate_rank)
        assert titles(page, "before") == [passage.title for passage in retrieved]
        assert titles(page, "after") == [passage.title for passage in found]
        first = page.locator("#after li").first
        assert first.locator(".number").inner_text() == f"{found[0].score:.3f}"
        climbed = found[0].candidate_rank - 1
        change = first.locator(".change").inner_text()
        assert change == ("= same place" if climbed == 0 else f"▲ {climbed}, was {found[0].candidate_rank}")
        stages = page.get_attribute("#stages", "aria-label") or ""
        assert [part.rpartition(" ")[0].rpartition(" ")[0] for part in stages.split(", ")] == [
            "query's encoding",
            "retrieval",
            "reranking",
            "the rest",
        ]
        page.focus("#weight")
        page.keyboard.press("End")
        assert page.inner_text("#weight-value") == "2.00"
        assert titles(page, "after") == by(2.0) != by(0.3)
        told = page.locator("#after .track").first.get_attribute("aria-label") or ""
        assert re.fullmatch(r"score [\d.]+: reranker -?[\d.]+, words [\d.]+", told)
        page.keyboard.press("Home")
        assert titles(page, "after") == by(0.0)
        page.focus("#after li")
        assert page.locator(".marked").count() == 2
        findings = Axe().run(page).response["violations"]
        assert [(finding["id"], finding["help"]) for finding in findings] == []
        assert not problems
        assert {url.split("/")[2] for url in asked} == {str(served.http.base_url).split("/")[2]}
        page.fill("#candidates", "1000")
        page.evaluate("document.querySelector('#candidates').max = 5000")
        page.fill("#candidates", "2000")
        page.keyboard.press("Enter")
        page.wait_for_selector("#failure:not([hidden])")
        assert page.inner_text("#failure") == "k: out of range (limit 1000, got 2000) (and 1 more)"
