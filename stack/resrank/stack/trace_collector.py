"""A collector of OpenTelemetry's traces for one machine: takes OTLP over HTTP and keeps what came, by trace."""

from __future__ import annotations

import base64
import json
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from resrank.core.addresses import join_address
from resrank.core.errors import StackError
from resrank.core.extras import install_command

PATH = "/v1/traces"
MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_TRACES = 1000
"""Traces that are kept; the one that began first goes first."""

_IDS = {"traceId", "spanId", "parentSpanId"}


@dataclass(frozen=True)
class TraceSpan:
    """One span.

    Attributes:
        service: The process's own name.
        name: What it is a span of.
        span_id: Its own id, in hex.
        parent_id: Of what it is a part of, in hex; empty for the first of a trace.
        start_ns: Nanoseconds since 1970.
        end_ns: Nanoseconds since 1970.
        attributes: What is known of it.
        failed: Whether its status is an error.
    """

    service: str
    name: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, str | int | float | bool] = field(default_factory=dict)
    failed: bool = False


class TraceCollector:
    """Listens between entry and exit.

    Args:
        host: Address to listen on.
        port: Port; 0 lets the system choose.

    Attributes:
        endpoint: What ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set to for it.

    Raises:
        StackError: The port is taken, or the extra ``otel`` is not installed.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        try:
            from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
        except ModuleNotFoundError as error:
            raise StackError(f"what traces are made of comes with OpenTelemetry: {install_command('otel')}") from error
        self._messages = trace_service_pb2
        self._lock = threading.Lock()
        self._traces: dict[str, list[TraceSpan]] = {}
        self._changed: dict[str, float] = {}
        collector = self

        class Handler(_Handler):
            traces = collector

        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise StackError(f"cannot listen on {join_address(host, port)}: {error.strerror}") from error
        self.endpoint = f"http://{join_address(host, self._server.server_port)}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="traces", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def trace(self, trace_id: str) -> list[TraceSpan]:
        """The spans of a trace that came so far, by their start.

        Args:
            trace_id: In hex.
        """
        with self._lock:
            return sorted(self._traces.get(trace_id, ()), key=_start)

    def take_quiet(self, quiet_s: float) -> Iterator[tuple[str, list[TraceSpan]]]:
        """Takes out the traces of which nothing has come for a while, the first first.

        Args:
            quiet_s: How long, in seconds. Processes send what they have every five seconds.

        Yields:
            Id and spans.
        """
        before = time.monotonic() - quiet_s
        with self._lock:  # taken out in one piece: what comes meanwhile begins the trace's next part
            quiet = [trace_id for trace_id, changed in self._changed.items() if changed <= before]
            taken = [(trace_id, self._traces.pop(trace_id)) for trace_id in quiet]
            for trace_id in quiet:
                del self._changed[trace_id]
        for trace_id, spans in taken:
            yield trace_id, sorted(spans, key=_start)

    def receive(self, body: bytes, content_type: str) -> bytes:
        """Takes one export request.

        Args:
            body: As it came, unpacked.
            content_type: Protobuf, or JSON as Triton sends it.

        Returns:
            The answer, in the same form.

        Raises:
            ValueError: It is no export request.
        """
        as_json = "json" in content_type
        request: Any = self._messages.ExportTraceServiceRequest()
        try:
            if as_json:
                json_format.ParseDict(_with_base64_ids(json.loads(body)), request, ignore_unknown_fields=True)
            else:
                request.ParseFromString(body)
        except (DecodeError, json_format.ParseError, ValueError, TypeError) as error:
            raise ValueError(f"no ExportTraceServiceRequest: {error}") from error
        self._keep(_spans(request))
        response: Message = self._messages.ExportTraceServiceResponse()
        return json_format.MessageToJson(response).encode() if as_json else response.SerializeToString()

    def _keep(self, spans: Iterable[tuple[str, TraceSpan]]) -> None:
        now = time.monotonic()
        with self._lock:
            for trace_id, span in spans:
                self._traces.setdefault(trace_id, []).append(span)
                self._changed[trace_id] = now
            while len(self._traces) > MAX_TRACES:
                oldest = next(iter(self._traces))
                del self._traces[oldest], self._changed[oldest]


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    """A stack has a dozen processes, which all call when a request is over: the standard library's 5 are too few."""


class _Handler(BaseHTTPRequestHandler):
    """Answers as OTLP has it (https://opentelemetry.io/docs/specs/otlp/#otlphttp)."""

    traces: TraceCollector
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_POST(self) -> None:  # the standard library's name
        content_type = self.headers.get("content-type", "")
        try:
            size = int(self.headers.get("content-length", ""))
        except ValueError:
            return self._refuse(411, "a Content-Length is needed")
        if size > MAX_BODY_BYTES or size < 0:
            return self._refuse(413, f"at most {MAX_BODY_BYTES} bytes, not {size}")
        body = self.rfile.read(size)
        if self.path != PATH:
            return self._refuse(404, f"traces alone are taken here, at {PATH}")
        try:
            if self.headers.get("content-encoding", "identity") != "identity":
                body = _unpacked(body)
            answer = self.traces.receive(body, content_type)
        except (ValueError, zlib.error) as error:
            return self._refuse(400, str(error))
        return self._answer(200, answer, content_type)

    def log_message(self, format: str, *args: object) -> None:  # the standard library's name
        """Says nothing: each process calls every few seconds."""

    def _refuse(self, status: int, why: str) -> None:
        self.close_connection = True
        self._answer(status, why.encode(), "text/plain; charset=utf-8")

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _start(span: TraceSpan) -> int:
    return span.start_ns


def _unpacked(body: bytes) -> bytes:
    """What gzip or deflate packed, no more than may come unpacked."""
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # tells both by their headers
    content = unpacker.decompress(body, MAX_BODY_BYTES)
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise ValueError(f"not whole, or more than {MAX_BODY_BYTES} bytes when it is unpacked")
    return content


def _spans(request: Any) -> Iterator[tuple[str, TraceSpan]]:
    for resource_spans in request.resource_spans:
        service = _attributes(resource_spans.resource.attributes).get("service.name", "?")
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield (
                    span.trace_id.hex(),
                    TraceSpan(
                        str(service),
                        span.name,
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        _attributes(span.attributes),
                        span.status.code == 2,
                    ),
                )


def _attributes(pairs: Any) -> dict[str, str | int | float | bool]:
    """Those that are single values."""
    found = {pair.key: (pair.value.WhichOneof("value"), pair.value) for pair in pairs}
    kinds = ("string_value", "bool_value", "int_value", "double_value")
    return {key: getattr(value, kind) for key, (kind, value) in found.items() if kind in kinds}


def _with_base64_ids(content: Any) -> Any:
    """OTLP's JSON writes ids in hex, protobuf's has bytes in base 64."""
    if isinstance(content, dict):
        return {
            key: base64.b64encode(bytes.fromhex(value)).decode() if key in _IDS else _with_base64_ids(value)
            for key, value in content.items()
        }
    return [_with_base64_ids(value) for value in content] if isinstance(content, list) else content
