"""gRPC metadata of a call: the configured headers, the bearer token and the trace context."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module

from resrank.client.settings import ClientSettings
from resrank.core.errors import InvalidInputError

Metadata = tuple[tuple[str, str], ...]

# W3C Trace Context, section 3.2: version-traceid-parentid-flags.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

# gRPC over HTTP/2, "ASCII-Value". gRPC's own refusal of others is neither typed nor does it say which value it was.
_METADATA_VALUE = re.compile(r"[\x20-\x7e]*")


def _opentelemetry_inject() -> Callable[[dict[str, str]], None] | None:
    """OpenTelemetry's propagator where the application has it installed; the client itself does not need it."""
    try:
        inject: Callable[[dict[str, str]], None] = import_module("opentelemetry.propagate").inject
    except ImportError:
        return None
    return inject


_inject = _opentelemetry_inject()


def call_metadata(settings: ClientSettings, traceparent: str | None) -> Metadata:
    """Metadata for every request of one call.

    It is made in the caller's own thread or task, where the current span is to be found.

    Args:
        settings: Headers, token and the constructor's source of trace contexts.
        traceparent: The call's own trace context; it goes before the constructor's, which goes before OpenTelemetry's.

    Raises:
        InvalidInputError: The trace context is not of the W3C form, or a value is no text or not printable ASCII.
    """
    pairs = dict(settings.headers)
    token = settings.bearer_token() if callable(settings.bearer_token) else settings.bearer_token
    if token is not None:
        if not isinstance(token, str):
            raise InvalidInputError("bearer_token", f"must be a string, not {type(token).__name__}")
        pairs["authorization"] = f"Bearer {token}"
    if traceparent is None and settings.traceparent is not None:
        traceparent = settings.traceparent()
    if traceparent is not None:
        if not isinstance(traceparent, str) or not _TRACEPARENT.fullmatch(traceparent):
            raise InvalidInputError(
                "traceparent", "not of the W3C form 00-<32 hex digits>-<16 hex digits>-<2 hex digits>, in lower case"
            )
        pairs["traceparent"] = traceparent
    elif _inject is not None:
        _inject(pairs)
    for key, value in pairs.items():
        if not isinstance(value, str) or not _METADATA_VALUE.fullmatch(value):  # not told: it may be a secret
            raise InvalidInputError(
                "bearer_token" if key == "authorization" and token is not None else f"headers[{key!r}]",
                "must be printable ASCII; a token read from a file may still have the file's newline",
            )
    return tuple(pairs.items())
