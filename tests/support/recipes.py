"""The recipes of deploy/recipes as the servers that they are for make requests of them, and read the answers.

Those servers are not here. What they do is taken from their documentation and sources (November 2026): Elasticsearch's
``custom`` service, OpenSearch's ml-commons with its functions for Cohere, Milvus' client of vLLM, Weaviate's
``reranker-transformers``, Dify's and RAGFlow's providers for compatible APIs, open-webui's external reranker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "recipes"
GATEWAY = "resrank-gateway:8080"
KEY = "a key"


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        path: Of the gateway.
        headers: Sent along.
        body: JSON.
    """

    path: str
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def of(cls, url: str, body: Any, headers: Mapping[str, str] | None = None) -> Asked:
        parts = urlsplit(url)
        assert (parts.scheme, parts.netloc) == ("http", GATEWAY)
        kept = {"Content-Type": "application/json", **(headers or {})}
        return cls(parts.path, kept, body if isinstance(body, bytes) else json.dumps(body).encode())


Ask = Callable[[Asked], Any]
"""Sends a request and gives the JSON of its answer."""


def elasticsearch(ask: Ask, query: str, texts: list[str]) -> list[float]:
    """Templates are filled with JSON; the parser's paths name a list each, parallel to each other."""
    settings = _json("elasticsearch-endpoint")["service_settings"]
    secrets = dict.fromkeys(settings["secret_parameters"], KEY)
    body = _filled(settings["request"], {"query": json.dumps(query), "input": json.dumps(texts)})
    headers = {name: _filled(value, secrets) for name, value in settings["headers"].items()}
    answer = ask(Asked.of(settings["url"], body.encode(), headers))
    parser = settings["response"]["json_parser"]
    assert set(parser) <= {"reranked_index", "relevance_score", "document_text"}
    places, scores = (_at(parser[name], answer) for name in ("reranked_index", "relevance_score"))
    return _by_place(dict(zip(places, scores, strict=True)), len(texts))


def opensearch(ask: Ask, query: str, texts: list[str]) -> list[float]:
    """The function before it makes ``query``, ``documents`` and ``top_n``; the one behind it reads Cohere's results."""
    connector = _json("opensearch-connector")
    (action,) = connector["actions"]
    assert action["pre_process_function"] == "connector.pre_process.cohere.rerank"
    assert action["post_process_function"] == "connector.post_process.cohere.rerank"
    values = {"credential.api_key": KEY} | {f"parameters.{name}": v for name, v in connector["parameters"].items()}
    values |= {
        "parameters.query": json.dumps(query)[1:-1],  # text is escaped, and its quotes are the template's
        "parameters.documents": json.dumps(texts),
        "parameters.top_n": str(len(texts)),
    }
    headers = {name: _filled(value, values) for name, value in action["headers"].items()}
    assert any(
        re.fullmatch(pattern, action["url"])
        for pattern in _json("opensearch-settings")["persistent"][
            "plugins.ml_commons.trusted_connector_endpoints_regex"
        ]
    )
    answer = ask(Asked.of(action["url"], _filled(action["request_body"], values).encode(), headers))
    scores = {result["index"]: result["relevance_score"] for result in answer["results"]}
    assert all(isinstance(score, float) for score in scores.values())  # it casts them to Double
    return _by_place(scores, len(texts))


def milvus(ask: Ask, query: str, texts: list[str]) -> list[float]:
    """It puts the path in place of the endpoint's, sends batches, names no model and sorts by place."""
    params = _json("milvus")["params"]
    assert (params["reranker"], params["provider"]) == ("model", "vllm")
    size = params["max_client_batch_size"]
    scores: list[float] = []
    for start in range(0, len(texts), size):
        batch = texts[start : start + size]
        answer = ask(Asked.of(params["endpoint"] + "/rerank", {"query": query, "documents": batch}))
        scores += [each["relevance_score"] for each in sorted(answer["results"], key=lambda each: each["index"])]
    return scores


def weaviate(ask: Ask, query: str, texts: list[str]) -> list[float]:
    """Batches of 32, whatever is set."""
    url = _variables("weaviate")["RERANKER_INFERENCE_API"] + "/rerank"
    scores: list[float] = []
    for start in range(0, len(texts), 32):
        batch = texts[start : start + 32]
        answer = ask(Asked.of(url, {"query": query, "documents": batch, "property": ""}, {}))
        assert [each["document"] for each in answer["scores"]] == batch
        scores += [each["score"] for each in answer["scores"]]
    return scores


def dify(ask: Ask, query: str, texts: list[str]) -> list[float]:
    """``top_n`` is null where nobody set it."""
    form = _form("dify")
    body = {
        "model": form["Model Name"],
        "query": query,
        "documents": texts,
        "top_n": None,
        "return_documents": True,
    }
    answer = ask(Asked.of(form["API endpoint URL"] + "/rerank", body, {"Authorization": f"Bearer {KEY}"}))
    assert {result["document"]["text"] for result in answer["results"]} == set(texts)
    return _by_place({result["index"]: result["relevance_score"] for result in answer["results"]}, len(texts))


def ragflow(ask: Ask, query: str, texts: list[str]) -> list[float]:
    """A base URL with ``/rerank`` in it is taken as it stands."""
    form = _form("ragflow")
    body = {"model": form["Model name"], "query": query, "documents": texts, "top_n": len(texts)}
    answer = ask(Asked.of(form["Base url"], body, {"Authorization": f"Bearer {KEY}"}))
    return _by_place({result["index"]: result["relevance_score"] for result in answer["results"]}, len(texts))


def open_webui(ask: Ask, query: str, texts: list[str]) -> list[float]:
    """The URL is taken as it stands; scores are sorted by place."""
    variables = _variables("open-webui")
    assert variables["RAG_RERANKING_ENGINE"] == "external"
    body = {"model": variables["RAG_RERANKING_MODEL"], "query": query, "documents": texts, "top_n": len(texts)}
    answer = ask(Asked.of(variables["RAG_EXTERNAL_RERANKER_URL"], body, {"Authorization": f"Bearer {KEY}"}))
    return [result["relevance_score"] for result in sorted(answer["results"], key=lambda each: each["index"])]


SERVERS: Mapping[str, Callable[[Ask, str, list[str]], list[float]]] = {
    "elasticsearch": elasticsearch,
    "opensearch": opensearch,
    "milvus": milvus,
    "weaviate": weaviate,
    "dify": dify,
    "ragflow": ragflow,
    "open-webui": open_webui,
}
"""Each gives the scores of the texts in their order."""


def _json(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def _form(name: str) -> Any:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def _variables(name: str) -> dict[str, str]:
    lines = (FOLDER / f"{name}.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def _filled(template: str, values: Mapping[str, str]) -> str:
    """A name that there is no value for is an error, as it is to the servers."""
    return re.sub(r"\$\{([\w.]+)\}", lambda found: values[found[1]], template)


def _at(path: str, body: Any) -> list[Any]:
    """What ``$.a[*].b`` finds."""
    found = [body]
    for part in path.removeprefix("$.").split("."):
        name, each = part.removesuffix("[*]"), part.endswith("[*]")
        found = [value[name] for value in found]
        found = [element for value in found for element in value] if each else found
    return found


def _by_place(scores: Mapping[int, float], count: int) -> list[float]:
    assert sorted(scores) == list(range(count))  # the servers want a score for each
    return [scores[place] for place in range(count)]
