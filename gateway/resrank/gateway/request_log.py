"""Begins and ends every request: its id, a line in the log, and what is counted."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry.trace import Span, SpanKind, StatusCode
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resrank.core.tracing import read_context, span, untraced
from resrank.gateway import error_forms
from resrank.gateway.failures import failure_of
from resrank.gateway.metrics import GatewayMetrics
from resrank.gateway.request_facts import RequestFacts, begin

logger = logging.getLogger("resrank.gateway")

_QUIET = frozenset({"/health", "/v1/health/live", "/v1/health/ready", "/metrics"})
"""Asked every few seconds by machines; logged only where they fail, and never traced."""


class RequestLog:
    """Outermost of what a request goes through.

    The line tells who asked for what, how it ended and how long it took: of what was asked and answered, counts alone.

    Args:
        app: What answers.
        metrics: Told of every request.
    """

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        facts = begin(scope)
        started = time.perf_counter()
        status, sent = 0, 0

        async def observed(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = facts.id
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        with self._metrics.under_way.track_inprogress(), _span(scope, facts) as traced:
            try:
                await self._app(scope, receive, observed)
            except Exception as error:
                # What the error says may hold a caller's text: told are its class and where it was raised.
                told = {"id": facts.id, "error": type(error).__name__, "at": _origin(error)}
                logger.error("request failed", extra=told)  # noqa: TRY400
                if not status:
                    failure = failure_of(error)
                    facts.kind = failure.kind
                    response = error_forms.unread_response(scope["path"], failure, facts.id)
                    await response(scope, receive, observed)
            finally:
                self._end(scope, facts, status, sent, time.perf_counter() - started)
                _name(traced, scope, facts, status)

    def _end(self, scope: Scope, facts: RequestFacts, status: int, sent: int, took_s: float) -> None:
        route = _route(scope)
        self._metrics.requests.labels(route, facts.schema or "", str(status)).inc()
        self._metrics.seconds.labels(route).observe(took_s)
        self._count(route, facts.counts)
        if route in _QUIET and status < 400:
            return
        told: dict[str, object] = {
            "id": facts.id,
            "caller": facts.caller or "-",
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(1e3 * took_s, 1),
            "bytes": sent,
            **facts.counts,
        }
        if facts.kind is not None:
            told["failure"] = facts.kind
        logger.info("request", extra=told)

    def _count(self, route: str, counts: Mapping[str, Any]) -> None:
        for name, counter in (
            ("documents", self._metrics.documents),
            ("truncated", self._metrics.truncated),
            ("unusable", self._metrics.unusable),
        ):
            if counts.get(name):
                counter.labels(route).inc(counts[name])
        if "not_reranked" in counts:
            self._metrics.not_reranked.labels(route, counts["not_reranked"]).inc()


def _name(traced: Span, scope: Scope, facts: RequestFacts, status: int) -> None:
    """Names a span when it is known what for: of few values, as span names have to be."""
    traced.update_name(f"{scope['method']} {_route(scope)}")
    traced.set_attributes(
        {"http.request.method": scope["method"], "http.route": _route(scope), "http.response.status_code": status}
    )
    if facts.kind is not None:
        traced.set_attribute("error.type", facts.kind)
    if status >= 500:
        traced.set_status(StatusCode.ERROR)


def _span(scope: Scope, facts: RequestFacts) -> AbstractContextManager[Span]:
    if scope["path"] in _QUIET:
        return untraced()
    context = None if facts.traceparent is None else read_context(facts.traceparent)
    return span("HTTP", context=context, kind=SpanKind.SERVER, attributes={"resrank.request_id": facts.id})


def _route(scope: Scope) -> str:
    """The path as the gateway knows it: a caller's own could be anything, a text or a key among it."""
    route = scope.get("route")
    return str(getattr(route, "path", "")) or "other"


def _origin(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    code = trace.tb_frame.f_code
    return f"{code.co_filename}:{trace.tb_lineno} ({code.co_name})"
