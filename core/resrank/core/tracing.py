"""Spans of OpenTelemetry: made by its API alone, exported where a process's environment names a collector.

Without the SDK, which is the extra ``otel``, a span costs next to nothing and goes nowhere; the context that a caller
brings is passed on all the same.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TypeAlias
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import resrank.core
from resrank.core.errors import InvalidInputError
from resrank.core.extras import install_command
from resrank.core.outcomes import Outcome, outcome_of

logger = logging.getLogger(__name__)

ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""Where a collector takes OTLP over HTTP, for instance ``http://localhost:4318``: OpenTelemetry's own variable."""

_TRACES_ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"

TRACEPARENT = "traceparent"
"""The W3C trace context as gRPC metadata, and as a request parameter between models of one Triton."""

LAST_S = 2.0
"""What a process that ends waits for its collector, at most."""

Attributes: TypeAlias = Mapping[str, str | int | float | bool]

_W3C = TraceContextTextMapPropagator()
_TRACER = trace.get_tracer("resrank", resrank.core.__version__)


def read_context(traceparent: str) -> Context:
    """The context that a W3C ``traceparent`` names; an empty one when it names none."""
    return _W3C.extract({TRACEPARENT: traceparent}, Context())


def write_traceparent(context: Context | None = None) -> str | None:
    """The W3C ``traceparent`` of a context's span, the current one's when None; None where there is no span."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, context)
    return carrier.get(TRACEPARENT)


def outcome_of_error(error: BaseException) -> Outcome:
    """How what raised it ended: what is no error but ends a thread or a task is a cancellation."""
    return outcome_of(error) if isinstance(error, Exception) else Outcome.CANCELLED


@contextmanager
def span(
    name: str,
    *,
    context: Context | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
    outcome: Callable[[BaseException], Outcome] = outcome_of_error,
) -> Iterator[Span]:
    """A span around what happens inside, current while it does.

    Args:
        name: Of few values: no text, no id.
        context: What it belongs to; the current span when None.
        kind: Which side of a call it is.
        attributes: What is known of it from the start.
        outcome: What it is called that an error ends it. The error's own words stay out: they may quote what a caller
            sent.
    """
    started = _TRACER.start_span(name, context, kind, dict(attributes or {}))
    # Not start_as_current_span: without the SDK that one would hide the caller's context from what happens inside.
    with trace.use_span(started, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield started
        except BaseException as error:
            started.set_status(StatusCode.ERROR)
            started.set_attributes({"error.type": type(error).__name__, "resrank.outcome": outcome(error).value})
            raise


def record_span(
    name: str, start_ns: int, end_ns: int, *, context: Context | None = None, attributes: Attributes | None = None
) -> None:
    """Makes a span of what has happened already.

    Args:
        name: Of few values.
        start_ns: When it began, in nanoseconds since 1970.
        end_ns: When it ended.
        context: What it belongs to; the current span when None.
        attributes: What is known of it.
    """
    if trace.get_current_span(context).get_span_context().is_valid:
        _TRACER.start_span(name, context, attributes=dict(attributes or {}), start_time=start_ns).end(end_ns)


@contextmanager
def inner_span(name: str) -> Iterator[None]:
    """A part of the current span, if that is recorded at all: next to nothing else."""
    if not trace.get_current_span().is_recording():
        yield
        return
    with span(name):
        yield


@contextmanager
def untraced() -> Iterator[Span]:
    """Has what happens inside make no spans: it is within a trace that was decided against."""
    decided = SpanContext(secrets.randbits(128) | 1, secrets.randbits(64) | 1, is_remote=False)
    with trace.use_span(NonRecordingSpan(decided)) as nothing:
        yield nothing


def traces_endpoint(environment: Mapping[str, str] = os.environ) -> str | None:
    """Where the environment says that spans go.

    Args:
        environment: OpenTelemetry's variables are read from it.

    Returns:
        The URL that takes OTLP over HTTP; None where none is named, or OpenTelemetry is switched off.

    Raises:
        InvalidInputError: It is no such URL, or another protocol is asked for.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    variable, endpoint = _TRACES_ENDPOINT_VARIABLE, environment.get(_TRACES_ENDPOINT_VARIABLE, "")
    if not endpoint:
        variable, endpoint = ENDPOINT_VARIABLE, environment.get(ENDPOINT_VARIABLE, "")
        if not endpoint:
            return None
        endpoint = endpoint.rstrip("/") + "/v1/traces"
    for name in _PROTOCOL_VARIABLES:
        if environment.get(name, _PROTOCOL) != _PROTOCOL:
            raise InvalidInputError(
                name, f"Triton speaks OTLP over HTTP alone: name its port in {variable}, usually 4318, and leave {name}"
            )
    return check_endpoint(variable, endpoint)


def check_endpoint(field: str, endpoint: str) -> str:
    """Returns an address of a collector when it can be one.

    Raises:
        InvalidInputError: It is no ``http://`` or ``https://`` URL with a host.
    """
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is none
        valid = False
    if not valid or any(character.isspace() for character in endpoint):
        raise InvalidInputError(field, f"{endpoint!r} is no address of a collector: give http://HOST:4318")
    return endpoint


def has_exporter() -> bool:
    """Whether the extra ``otel`` is installed here."""
    try:
        return all(map(find_spec, ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")))
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def export_traces(service: str) -> None:
    """Sends this process's spans to the collector that the environment names; for processes, never for libraries.

    What is left at the end of the process is sent then, where the collector takes it within :data:`LAST_S`.

    Which traces begin here, how spans are batched, headers and certificates: OpenTelemetry's own ``OTEL_`` variables.

    Args:
        service: Its name in traces, where the environment gives no other.

    Raises:
        InvalidInputError: The environment names one that is none.
    """
    if traces_endpoint() is None:
        return
    if not has_exporter():  # the variable may be the platform's, for all that runs there
        logger.warning("%s is set, but traces are not sent: %s", ENDPOINT_VARIABLE, install_command("otel"))
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    told = Resource.create()
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    own = {SERVICE_VERSION: resrank.core.__version__} | ({} if named else {SERVICE_NAME: service})
    provider = TracerProvider(resource=told.merge(Resource(own)), shutdown_on_exit=False)
    exporter = OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    atexit.register(_bounded_end(provider.shutdown, exporter.shutdown))


def _bounded_end(send_rest: Callable[[], None], give_up: Callable[[], None]) -> Callable[[], None]:
    """Sends what is left, and gives up in time: a collector that is down would hold the process for half a minute."""
    ending, ended = threading.Event(), threading.Event()

    def watch() -> None:
        ending.wait()
        if not ended.wait(LAST_S):
            give_up()

    # Begun now: at the end of a process Python starts no thread any more.
    threading.Thread(target=watch, name="last traces", daemon=True).start()

    def end() -> None:
        ending.set()
        send_rest()
        ended.set()

    return end
