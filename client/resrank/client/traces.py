"""What a call adds to a trace: a span of its own, one for each request, and the context that goes along."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from resrank.client.calls import Call, Server
from resrank.client.metadata import Metadata
from resrank.client.settings import ClientSettings
from resrank.core.errors import InvalidInputError
from resrank.core.tracing import TRACEPARENT, read_context, span, write_traceparent

# W3C Trace Context, section 3.2: version-traceid-parentid-flags.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def caller_context(settings: ClientSettings, traceparent: str | None) -> Context:
    """The trace that a call belongs to; looked for in the caller's own thread or task, where the current span is.

    Args:
        settings: The constructor's source of trace contexts.
        traceparent: The call's own; it goes before the constructor's, which goes before OpenTelemetry's current span.

    Raises:
        InvalidInputError: The trace context is not of the W3C form.
    """
    if traceparent is None and settings.traceparent is not None:
        traceparent = settings.traceparent()
    if traceparent is None:
        return contexts.get_current()
    if not isinstance(traceparent, str) or not _TRACEPARENT.fullmatch(traceparent):
        raise InvalidInputError(
            "traceparent", "not of the W3C form 00-<32 hex digits>-<16 hex digits>-<2 hex digits>, in lower case"
        )
    return read_context(traceparent)


@contextmanager
def call_span(operation: str, parent: Context) -> Iterator[Context]:
    """A span around a whole call.

    Args:
        operation: The client's method.
        parent: What the caller is in.

    Yields:
        The context that its requests belong to, in whatever thread or task they are sent.
    """
    with span(f"resrank {operation}", context=parent):
        yield contexts.get_current()


@contextmanager
def request_span(call: Call[Any], address: str, parent: Context) -> Iterator[Metadata]:
    """A span around one request.

    Args:
        call: What is sent.
        address: Where to.
        parent: The call's context.

    Yields:
        What the request has to have among its metadata to continue the trace.
    """
    attributes = {"rpc.system": "grpc", "rpc.method": call.method, "server.address": address}
    with span(f"{call.method} {call.subject}", context=parent, kind=SpanKind.CLIENT, attributes=attributes):
        yield trace_metadata(call.server)


def trace_metadata(server: Server) -> Metadata:
    """The current span as metadata: by the application's propagators, and as W3C has it, which the servers read.

    Triton 2.51 records every trace that it is told of, also those that were decided against: it is not told of those.
    """
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    traceparent = sampled_traceparent() if server is Server.TRITON else write_traceparent()
    carrier.pop(TRACEPARENT, None)
    if traceparent is not None:
        carrier[TRACEPARENT] = traceparent
    return tuple(carrier.items())


def sampled_traceparent() -> str | None:
    """The current span as W3C has it; None where there is none, or it was decided against."""
    return write_traceparent() if trace.get_current_span().get_span_context().trace_flags.sampled else None
