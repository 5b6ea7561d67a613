"""The gateway as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.staticfiles import StaticFiles

from resrank.client import AsyncResRankClient
from resrank.core import __version__
from resrank.core.errors import ResRankError
from resrank.gateway import error_forms
from resrank.gateway.access import Access
from resrank.gateway.admission import Admission
from resrank.gateway.embedding import Embedder
from resrank.gateway.failures import Failure, RefusedError, failure_of, of_validation
from resrank.gateway.gateway import Gateway
from resrank.gateway.keys import KeyFile
from resrank.gateway.metrics import GatewayMetrics
from resrank.gateway.request_facts import facts_of
from resrank.gateway.request_log import RequestLog
from resrank.gateway.reranking import Reranker
from resrank.gateway.routes import embeddings, health, models, playground, rerank, search
from resrank.gateway.settings import GatewaySettings
from resrank.gateway.shared_report import SharedReport
from resrank.gateway.upstream import open_client

OpenClient = Callable[[GatewaySettings], AsyncResRankClient]

_ABOUT = """Reranking, search and embeddings by ResRank on Triton, in the schemas that existing clients speak.

`documents` means Cohere, Jina and vLLM, `texts` means TEI, the key `property` means Weaviate, on each of the paths
`/rerank`, `/v1/rerank` and `/v2/rerank`. Texts that are too long are cut, and the answer says which.
"""


def create_app(settings: GatewaySettings, open_client: OpenClient = open_client) -> FastAPI:
    """Makes the application.

    Args:
        settings: How it is set up.
        open_client: Makes the client.

    Raises:
        InvalidInputError: A file or an address of the settings is wrong.
    """
    client, metrics = open_client(settings), GatewayMetrics()
    keys = None if settings.keys is None else KeyFile(settings.keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with client:
            app.state.gateway = Gateway(
                settings,
                client,
                Reranker(client),
                Embedder(client, settings.max_inputs),
                metrics,
                SharedReport(client),
            )
            yield

    app = FastAPIOffline(
        title="ResRank gateway",
        description=_ABOUT,
        version=__version__,
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # it would tell of texts in errors
        middleware=[
            Middleware(RequestLog, metrics=metrics),
            Middleware(Access, keys=keys),
            Middleware(
                Admission,
                most=settings.max_in_flight,
                max_body_bytes=settings.max_body_bytes,
                body_timeout_s=settings.body_timeout_s,
            ),
        ],
    )
    app.state.draining = False
    for router in (rerank.router, search.router, embeddings.router, models.router, health.router):
        app.include_router(router)
    app.include_router(playground.router)
    app.mount("/playground", StaticFiles(directory=playground.FOLDER), name="playground")
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_route)
    for kind in (ResRankError, RefusedError):
        app.add_exception_handler(kind, _failed)
    return app


async def _failed(request: Request, error: Exception) -> Response:
    return _answer(request, failure_of(error))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _answer(request, of_validation(error.errors()), error.body)


async def _no_route(request: Request, error: Exception) -> Response:
    """Of a path or a method that there is not, and what FastAPI says of bodies that are no JSON."""
    assert isinstance(error, HTTPException)
    kinds = {404: "not_found", 405: "method_not_allowed"}
    messages = {
        404: "path: there is none of that name; /docs shows all",
        405: "method: not of this path; /docs shows all",
    }
    failure = Failure(
        error.status_code,
        kinds.get(error.status_code, "malformed"),
        messages.get(error.status_code, f"body: {error.detail}"),
    )
    response = _answer(request, failure)
    response.headers.update(error.headers or {})
    return response


def _answer(request: Request, failure: Failure, body: object = None) -> Response:
    facts = facts_of(request)
    facts.kind = failure.kind
    if body is None and facts.schema is not None:
        return error_forms.error_response(error_forms.Schema(facts.schema), failure, facts.id)
    schema = error_forms.schema_of(request.url.path, body)
    facts.schema = schema.value
    if body is None:  # what would tell whose it is was not read
        return error_forms.unread_response(request.url.path, failure, facts.id)
    return error_forms.error_response(schema, failure, facts.id)
