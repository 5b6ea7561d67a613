"""The collector against OpenTelemetry's own exporter, and against what Triton sends."""

from __future__ import annotations

import gzip
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import StatusCode, format_trace_id
from rich.console import Console

from resrank.core.errors import StackError
from resrank.stack.trace_collector import MAX_BODY_BYTES, MAX_TRACES, TraceCollector, TraceSpan
from resrank.stack.trace_tree import trace_tree

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def collector() -> Iterator[TraceCollector]:
    with TraceCollector() as listening:
        yield listening


def post(collector: TraceCollector, body: bytes, *, path: str = "/v1/traces", **headers: str) -> tuple[int, str]:
    told = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(collector.endpoint + path, body, told)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("compression", list(Compression))
def test_opentelemetrys_exporter_is_understood(collector: TraceCollector, compression: Compression) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "mine"}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{collector.endpoint}/v1/traces", compression=compression)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("t")
    with tracer.start_as_current_span("outer", attributes={"resrank.batch_rows": 3, "list": [1, 2]}) as outer:
        time.sleep(0.01)
        with tracer.start_as_current_span("inner") as inner:
            inner.set_status(StatusCode.ERROR)
    first, second = collector.trace(format_trace_id(outer.get_span_context().trace_id))
    assert (first.service, first.name, first.parent_id, first.failed) == ("mine", "outer", "", False)
    assert first.attributes == {"resrank.batch_rows": 3}
    assert (second.name, second.parent_id, second.failed) == ("inner", first.span_id, True)
    assert 1e7 < second.start_ns - first.start_ns < first.end_ns - first.start_ns < 60e9


def test_what_triton_sends_is_understood(collector: TraceCollector) -> None:
    """JSON with ids in hex, as opentelemetry-cpp 1.13 writes it."""
    span = {
        "attributes": [{"key": "triton.model_version", "value": {"intValue": "1"}}],
        "endTimeUnixNano": "1795933699307856843",
        "events": [{"name": "REQUEST_START", "timeUnixNano": "1795933699307382079"}],
        "kind": 2,
        "name": "rerank",
        "parentSpanId": "35fb39ec1a26ebca",
        "spanId": "a7f800fa7f60291d",
        "startTimeUnixNano": "1795933699307382079",
        "traceId": TRACE,
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "triton"}}]}
    body = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "x"}, "spans": [span]}]}]}
    assert post(collector, json.dumps(body).encode()) == (200, "{}")
    assert collector.trace(TRACE) == [
        TraceSpan(
            service="triton",
            name="rerank",
            span_id="a7f800fa7f60291d",
            parent_id="35fb39ec1a26ebca",
            start_ns=1795933699307382079,
            end_ns=1795933699307856843,
            attributes={"triton.model_version": 1},
        )
    ]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[1]", {}, 400),
        (b"7", {}, 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": 7}]}]}]}', {}, 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}', {}, 400),
        (b"\xff\xff", {"Content_Type": "application/x-protobuf"}, 400),
        (b"not packed", {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(b"{}", mtime=0)[:-1], {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(b" " * (MAX_BODY_BYTES + 1), mtime=0), {"Content_Encoding": "gzip"}, 400),
        (b"{}", {"path": "/v1/metrics"}, 404),
    ],
)
def test_what_is_no_export_is_refused_and_the_next_is_not(
    collector: TraceCollector, body: bytes, headers: dict[str, str], status: int
) -> None:
    assert post(collector, body, **headers)[0] == status  # type: ignore[arg-type]
    assert post(collector, b"{}") == (200, "{}")


def test_a_body_that_is_too_large_is_refused_unread(collector: TraceCollector) -> None:
    assert post(collector, b"{}", Content_Length=str(MAX_BODY_BYTES + 1))[0] == 413


def test_a_taken_port_is_named(collector: TraceCollector) -> None:
    with pytest.raises(StackError, match=r"cannot listen on 127\.0\.0\.1:"):
        TraceCollector(port=int(collector.endpoint.rpartition(":")[2]))


def test_old_traces_make_room_and_quiet_ones_are_taken_once() -> None:
    spans = [
        {"traceId": f"{number:032x}", "spanId": f"{number:016x}", "name": "a"} for number in range(1, MAX_TRACES + 3)
    ]
    with TraceCollector() as collector:
        post(collector, json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}).encode())
        assert collector.trace(f"{2:032x}") == []
        assert list(collector.take_quiet(60)) == []
        taken = [trace_id for trace_id, _ in collector.take_quiet(0)]
        assert taken == [f"{number:032x}" for number in range(3, MAX_TRACES + 3)]
        assert list(collector.take_quiet(0)) == []


def test_a_tree_shows_parts_in_order_and_what_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def span(name: str, span_id: str, parent_id: str, start_ms: int, **known: object) -> TraceSpan:
        start_ns = start_ms * 1_000_000
        attributes = {f"resrank.{key}": value for key, value in known.items()}
        return TraceSpan("s", name, span_id, parent_id, start_ns, start_ns + 1_500_000, attributes, "outcome" in known)  # type: ignore[arg-type]

    spans = [
        span("late", "d", "a", 9, outcome="shed"),
        span("first", "a", "elsewhere", 0),
        span("[red]part", "c", "b", 3, batch_rows=2),
        span("early\x1b[2J", "b", "a", 1),
    ]
    Console(width=100).print(trace_tree(TRACE, spans))
    assert capsys.readouterr().out.splitlines() == [
        f"trace {TRACE}",
        "└── first  1.50 ms at 0.00  s",
        "    ├── early\\x1b[2J  1.50 ms at 1.00  s",
        "    │   └── [red]part  1.50 ms at 3.00  s  batch_rows=2",
        "    └── late  1.50 ms at 9.00  s  outcome=shed",
    ]
