"""Every failure, in the form and with the status that each schema's clients look for."""

from __future__ import annotations

from typing import Any

import pytest

from resrank.core.errors import (
    DeadlineExceededError,
    InvalidInputError,
    ModelNotReadyError,
    Place,
    QueueFullError,
    ResRankError,
    RetrievalError,
    ServerUnavailableError,
)

from .conftest import DecidedClient, Serve

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("/v2/rerank", {"query": "q", "documents": ["a"]}),
    "tei": ("/rerank", {"query": "q", "texts": ["a"]}),
    "nim": ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a"}]}),
    "weaviate": ("/rerank", {"query": "q", "documents": ["a"], "property": ""}),
    "openai": ("/v1/embeddings", {"input": "a"}),
    "embed": ("/embed", {"inputs": "a"}),
    "resrank": ("/v1/search", {"query": "q"}),
}

BLANK_WHERE_CUT = " " * 70_000 + "xx"


def sentence_of(schema: str, body: dict[str, Any]) -> str:
    """What a client of the schema shows its user."""
    match schema:
        case "cohere":
            return str(body["message"])
        case "tei" | "embed":
            assert body["error_type"] in ("Validation", "Overloaded", "Unhealthy", "Backend")
            return str(body["error"])
        case "nim":
            return str(body["detail"])
        case "weaviate":
            return str(body["error"])
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return str(body["error"]["message"])


@pytest.mark.parametrize("schema", REQUESTS)
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidInputError("k", "is wrong", limit=1, value=0), 422),
        (QueueFullError("the server sheds load"), 429),
        (RetrievalError("the search failed"), 502),
        (ResRankError("access refused"), 502),
        (ServerUnavailableError("no server answers"), 503),
        (ModelNotReadyError("not loaded"), 503),
        (DeadlineExceededError("time is up"), 504),
    ],
)
async def test_each_error_has_its_status_and_the_schemas_own_form(
    serve: Serve, client: DecidedClient, schema: str, error: Exception, status: int
) -> None:
    client.error = error
    path, body = REQUESTS[schema]
    async with serve() as http:
        answer = await http.post(path, json=body)
    assert answer.status_code == status
    assert ("retry-after" in answer.headers) == (status == 429)
    said = sentence_of(schema, answer.json())
    assert said == str(error) or (schema in ("openai", "embed") and said.endswith("is wrong (limit 1, got 0)"))


@pytest.mark.parametrize("schema", REQUESTS)
async def test_what_nobody_thought_of_is_a_500_that_tells_nothing(
    serve: Serve, client: DecidedClient, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.error = RuntimeError("a secret text")
    path, body = REQUESTS[schema]
    async with serve() as http:
        answer = await http.post(path, json=body)
    assert answer.status_code == 500
    assert "its log has the cause" in answer.text
    assert "secret" not in answer.text + caplog.text
    (failed,) = (record for record in caplog.records if record.getMessage() == "request failed")
    assert failed.__dict__["error"] == "RuntimeError"
    assert "conftest.py" in failed.__dict__["at"]


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/rerank", {"query": "q", "texts": ["a"], "documents": ["a"]}, 422, "not both"),
        ("/rerank", {"query": "q"}, 422, "give either documents (texts) or document_ids"),
        ("/rerank", {"query": "q", "documents": ["a"], "document_ids": ["a"]}, 422, "one of them"),
        ("/rerank", {"query": "q", "documents": []}, 422, "documents: too few elements (limit 1, got 0)"),
        ("/rerank", {"texts": ["a"]}, 422, "query: is missing"),
        ("/rerank", {"query": "q", "texts": "a"}, 422, "texts: must be a list, not 'a'"),
        ("/rerank", {"query": "q", "documents": ["a", {"txt": "b"}]}, 422, "documents[1].text: is missing"),
        ("/rerank", {"query": " ", "documents": ["a"]}, 422, "query: empty or only whitespace"),
        ("/rerank", {"query": "q", "documents": ["a"], "top_n": -1}, 422, "top_n: out of range (limit 0, got -1)"),
        (
            "/rerank",
            {"query": "q", "documents": ["a"], "top_n": "many"},
            422,
            "top_n: must be a whole number, not 'many'",
        ),
        ("/rerank", {"query": "q", "documents": ["a"], "min_score": 2}, 422, "min_score: out of range (limit 1"),
        ("/rerank", {"query": "q", "documents": ["a"], "lexical_weight": 1}, 422, "lexical_weight is of document_ids"),
        ("/rerank", {"query": "q", "documents": ["a"], "model": "gpt"}, 404, "model: 'gpt' is not served here"),
        ("/v1/ranking", {"query": "q", "passages": [{"text": "a"}]}, 422, "query: must be an object, not 'q'"),
        ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a"}], "model": "x"}, 404, "'x' is not served"),
        ("/v1/ranking", {"query": {"text": "q"}, "passages": [], "truncate": "END"}, 422, "passages: too few"),
        ("/v1/search", {"query": "q", "filter": [1, "a"]}, 422, 'filter: must be text, not [1, "a"]'),
        ("/v1/search", {"query": "q", "filter": True}, 422, "filter: must be text, not true"),
        ("/v1/search", {"query": "q", "filter": {"year": 2020}}, 422, "filter: must be text"),
        ("/v1/embeddings", {"input": []}, 422, "input: too few elements"),
        ("/v1/embeddings", {"input": [1, 2]}, 422, "input: must be texts: token ids"),
        ("/v1/embeddings", {"input": ["a", " "]}, 422, "input[1]: empty or only whitespace"),
        (
            "/v1/embeddings",
            {"input": ["a", " "], "input_type": "query"},
            422,
            "input[1]: empty or only whitespace",
        ),
        ("/v1/embeddings", {"input": ["a", BLANK_WHERE_CUT, "b"]}, 422, "input[1]: empty or only whitespace where it"),
        ("/embed", {"inputs": ["a", BLANK_WHERE_CUT]}, 422, "inputs[1]: empty or only whitespace where it was cut"),
        (
            "/rerank",
            {"query": "q", "texts": ["a", BLANK_WHERE_CUT], "strict": True},
            422,
            "texts[1]: empty or only whitespace where it was cut",
        ),
        (
            "/v1/embeddings",
            {"input": "a", "dimensions": 5},
            422,
            "dimensions: vectors have one length (limit 4, got 5)",
        ),
        (
            "/v1/embeddings",
            {"input": "a", "encoding_format": "hex"},
            422,
            "encoding_format: must be 'float' or 'base64'",
        ),
        ("/v1/embeddings", {"input": "a", "input_type": "image"}, 422, "input_type: must be 'query' or 'document'"),
        ("/v1/embeddings", {"input": ["a"] * 300}, 422, "input: too many in one request (limit 256, got more)"),
        ("/embed", {"inputs": ["a"] * 300}, 422, "inputs: too many in one request (limit 256, got more)"),
        (
            "/v1/search",
            {"query": "q", "k": 5, "candidates": 2},
            422,
            "k: more results than candidates (limit 2, got 5)",
        ),
        ("/v1/search", {"query": "q", "filtr": 5}, 422, "filtr: there is no such field"),
        (
            "/v1/search",
            {"query": "q", "mode": "magic"},
            422,
            "mode: must be 'hybrid', 'dense' or 'lexical', not 'magic'",
        ),
        ("/v1/search", {"query": "q", "on_failure": "x"}, 422, "on_failure: must be 'error' or 'retrieval_order'"),
        ("/v1/search", ["q"], 422, "body: must be an object, as JSON"),
        (
            "/v1/rerank",
            {"query": "q", "documents": ["a"] * 1001},
            422,
            "too many in one request (limit 1000, got more)",
        ),
        ("/v1/nothing", {}, 404, "path: there is none of that name"),
        ("/metrics", {}, 405, "method: not of this path"),
    ],
)
async def test_bad_input_is_one_sentence(serve: Serve, path: str, body: Any, status: int, sentence: str) -> None:
    async with serve() as http:
        answer = await http.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert sentence in all_texts(answer.json())


def all_texts(value: Any) -> str:
    """Whatever form it has."""
    return "\n".join(map(all_texts, value.values())) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"null", b'"text"', b"[" * 10_000, b'{"query": NaN}'])
@pytest.mark.parametrize("path", ["/rerank", "/v1/ranking", "/v1/embeddings", "/embed", "/v1/search"])
async def test_a_body_that_is_none_is_refused(serve: Serve, path: str, body: bytes) -> None:
    async with serve() as http:
        answer = await http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "body" in answer.text


async def test_a_body_of_another_type_is_refused(serve: Serve) -> None:
    """A page of another site may send it: JSON takes a question to this one first."""
    async with serve() as http:
        answer = await http.post(
            "/rerank", content=b'{"query": "q", "texts": ["a"]}', headers={"Content-Type": "text/plain"}
        )
    assert answer.status_code == 422
    assert "application/json" in answer.text


async def test_the_models_word_on_a_document_is_about_the_callers(serve: Serve, client: DecidedClient) -> None:
    client.error = InvalidInputError(Place("PASSAGES", (1,)), "too many tokens", limit=64, value=70)
    async with serve() as http:
        answer = await http.post("/rerank", json={"query": "q", "texts": ["", "a", "b"], "truncate": False})
        assert answer.json()["error"] == "texts[2]: too many tokens (limit 64, got 70)"
        client.error = InvalidInputError(Place("QUERY"), "too many tokens", limit=64, value=70)
        answer = await http.post("/rerank", json={"query": "q", "texts": ["a"], "truncate": False})
        assert answer.json()["error"] == "query: too many tokens (limit 64, got 70)"


@pytest.mark.parametrize(
    ("name", "problem", "said"),
    [
        ("QUERY", "too many tokens", "query: too many tokens (limit 64, got 70)"),
        ("TEXT", "too many tokens", "query: too many tokens (limit 64, got 70)"),
        ("text", "holds no word that could be searched for", "query: holds no word that could be searched for"),
        ("request", "a gRPC message is too large", "body: a gRPC message is too large (limit 64, got 70)"),
        ("k", "more results than candidates", "k: more results than candidates (limit 64, got 70)"),
        ("candidates", "too large", "candidates: too large (limit 64, got 70)"),
        ("mode", "cannot search HYBRID", "mode: cannot search HYBRID (limit 64, got 70)"),
        ("filter", "no record has the field 'a'", "filter: no record has the field 'a' (limit 64, got 70)"),
        ("collection", "too long", "collection: too long (limit 64, got 70)"),
        ("lexical_weight", "out of range", "lexical_weight: out of range (limit 64, got 70)"),
    ],
)
async def test_the_servers_words_on_a_search_name_fields_of_its_schema(
    serve: Serve, client: DecidedClient, name: str, problem: str, said: str
) -> None:
    bounds = {} if name == "text" else {"limit": 64, "value": 70}
    index = (0,) if name == "TEXT" else ()
    client.error = InvalidInputError(Place(name, index), problem, **bounds)
    async with serve() as http:
        answer = await http.post("/v1/search", json={"query": "q", "truncate": False})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["message"], error["param"]) == (said, said.partition(":")[0])


@pytest.mark.parametrize("name", ["CANDIDATES", "embedding", "encoder_sha256", "QUERY_EMBEDDING", "timeout", "headers"])
async def test_a_searchs_vectors_and_settings_that_servers_refuse_are_no_fault_of_its_caller(
    serve: Serve, client: DecidedClient, name: str
) -> None:
    client.error = InvalidInputError(Place(name, (3,)), "wrong dimension", limit=4, value=5)
    async with serve() as http:
        answer = await http.post("/v1/search", json={"query": "q"})
    assert answer.status_code == 502
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (None, "upstream_failed")
    assert error["message"] == (
        f"search: the servers refused what was made of the request ({name}[3]: wrong dimension (limit 4, got 5))"
    )


async def test_a_calibration_that_cannot_be_read_is_no_fault_of_a_searchs_caller(
    serve: Serve, client: DecidedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def calibration(**given: Any) -> None:
        raise InvalidInputError("calibration", "not as resrank calibrate writes it")

    monkeypatch.setattr(client, "calibration", calibration)
    async with serve() as http:
        assert (await http.post("/v1/search", json={"query": "q"})).status_code == 502
