"""How each schema words a failure: clients look for their own keys."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from resrank.gateway.failures import Failure


class Schema(StrEnum):
    """Whose clients a request comes from."""

    COHERE = "cohere"  # and Jina, vLLM, OpenSearch's and Elasticsearch's connectors
    TEI = "tei"
    NIM = "nim"
    WEAVIATE = "weaviate"
    OPENAI = "openai"
    RESRANK = "resrank"


_BY_PATH = {
    "/rerank": Schema.COHERE,
    "/v1/rerank": Schema.COHERE,
    "/v2/rerank": Schema.COHERE,
    "/v1/ranking": Schema.NIM,
    "/v1/embeddings": Schema.OPENAI,
    "/embed": Schema.TEI,
}

_TEI_KINDS = {
    413: "Validation",
    422: "Validation",
    400: "Validation",
    429: "Overloaded",
    503: "Unhealthy",
}
_OPENAI_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


def schema_of(path: str, body: object = None) -> Schema:
    """The schema of a request.

    Args:
        path: Of the request.
        body: As far as it was read; paths that answer several schemas tell them apart by it.
    """
    schema = _BY_PATH.get(path)
    if schema is None:
        return Schema.OPENAI if path.startswith("/v1/models") else Schema.RESRANK
    if schema is Schema.COHERE and isinstance(body, Mapping):
        return body_schema(body)
    return schema


def body_schema(body: Mapping[str, Any]) -> Schema:
    """Whose body it is, of those that come to one path."""
    if "property" in body:
        return Schema.WEAVIATE
    return Schema.TEI if "texts" in body else Schema.COHERE


def error_body(schema: Schema, failure: Failure, request_id: str) -> dict[str, Any]:
    """A failure as a schema's clients read it."""
    match schema:
        case Schema.COHERE:
            return {"message": failure.message, "id": request_id}
        case Schema.TEI:
            return {"error": failure.message, "error_type": _TEI_KINDS.get(failure.status, "Backend")}
        case Schema.WEAVIATE:
            return {"error": failure.message}
        case Schema.NIM:
            title = HTTPStatus(failure.status).phrase
            return {"status": failure.status, "title": title, "detail": failure.message, "requestId": request_id}
    kind = "server_error" if failure.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": failure.message,
            "type": _OPENAI_KINDS.get(failure.status, kind),
            "param": failure.field,
            "code": failure.kind,
        }
    }


def error_response(schema: Schema, failure: Failure, request_id: str) -> JSONResponse:
    """The answer to a request that failed."""
    return _response(error_body(schema, failure, request_id), failure)


def unread_response(path: str, failure: Failure, request_id: str) -> JSONResponse:
    """The answer to a request whose body was not read: where that would tell its schema, with the keys of all."""
    body = error_body(schema_of(path), failure, request_id)
    if schema_of(path) is Schema.COHERE:
        body |= error_body(Schema.TEI, failure, request_id)
    return _response(body, failure)


def _response(body: dict[str, Any], failure: Failure) -> JSONResponse:
    headers = {} if failure.retry_after_s is None else {"Retry-After": str(failure.retry_after_s)}
    if failure.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, failure.status, headers)
