from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from resrank.core import tracing
from resrank.core.errors import InvalidInputError, QueueFullError
from resrank.core.extras import install_command
from resrank.core.tracing import (
    LAST_S,
    export_traces,
    inner_span,
    read_context,
    record_span,
    span,
    traces_endpoint,
    untraced,
)
from support.spans import Spans

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = TRACEPARENT[:-1] + "0"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    return Spans(monkeypatch)


@pytest.mark.parametrize("traceparent", [TRACEPARENT, UNSAMPLED])
def test_without_the_sdk_a_context_passes_through_unchanged(traceparent: str) -> None:
    with span("outer", context=read_context(traceparent)), inner_span("inner"):
        record_span("done", 1, 2)
        assert tracing.write_traceparent() == traceparent
    assert tracing.write_traceparent() is None


def test_what_names_no_trace_belongs_to_none() -> None:
    for said in ("", "x", "00-0-0-01", TRACEPARENT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32)):
        assert tracing.write_traceparent(read_context(said)) is None


def test_spans_are_of_the_trace_that_was_told_and_of_each_other(spans: Spans) -> None:
    with span("outer", context=read_context(TRACEPARENT), attributes={"n": 1}):
        with inner_span("inner"):
            record_span("queue", 1_000, 5_000)
        told = tracing.write_traceparent()
    outer = spans.named("outer")
    assert outer.context is not None
    assert told == f"00-{TRACEPARENT.split('-')[1]}-{outer.context.span_id:016x}-01"
    assert [(made.name, spans.parent_of(made)) for made in spans.ended()] == [
        ("queue", "inner"),
        ("inner", "outer"),
        ("outer", "b7ad6b7169203331"),
    ]
    queue = spans.named("queue")
    assert (queue.start_time, queue.end_time) == (1_000, 5_000)


def test_a_trace_that_was_decided_against_has_no_spans_and_parts_make_none_alone(spans: Spans) -> None:
    with span("outer", context=read_context(UNSAMPLED)), inner_span("inner"):
        record_span("queue", 1, 2)
    with inner_span("a part of nothing"):
        record_span("queue", 1, 2)
    assert spans.ended() == []


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (QueueFullError("no room for 'a secret question'"), "shed"),
        (InvalidInputError("QUERY", "is 'a secret question'"), "invalid"),
        (ValueError("a secret question"), "failed"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_a_failed_span_says_how_and_none_of_the_errors_words(spans: Spans, error: BaseException, outcome: str) -> None:
    with pytest.raises(type(error)), span("failing"):
        raise error
    failed = spans.named("failing")
    assert failed.status.status_code is StatusCode.ERROR
    assert dict(failed.attributes or {}) == {"error.type": type(error).__name__, "resrank.outcome": outcome}
    assert "secret" not in failed.to_json()


def test_what_is_not_to_be_traced_makes_no_spans(spans: Spans) -> None:
    with untraced(), span("a health check", kind=SpanKind.SERVER), inner_span("part"):
        pass
    assert spans.ended() == []
    with span("the next"):
        pass
    assert [made.name for made in spans.ended()] == ["the next"]


ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        ({}, None),
        ({ENDPOINT: ""}, None),
        ({ENDPOINT: "http://collector:4318"}, "http://collector:4318/v1/traces"),
        ({ENDPOINT: "https://collector/otlp/"}, "https://collector/otlp/v1/traces"),
        ({ENDPOINT: "http://a:1", TRACES: "http://b:2/there"}, "http://b:2/there"),
        ({ENDPOINT: "http://a:1", "OTEL_SDK_DISABLED": "true"}, None),
        ({ENDPOINT: "http://a:1", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({ENDPOINT: "http://a:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "http://a:1/v1/traces"),
    ],
)
def test_where_traces_go_is_what_opentelemetrys_variables_say(environment: Any, endpoint: str | None) -> None:
    assert traces_endpoint(environment) == endpoint


@pytest.mark.parametrize("address", ["collector:4318", "grpc://collector:4317", "http://", "http://a:b", "http://a b"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InvalidInputError, match=r"http://HOST:4318") as caught:
        traces_endpoint({ENDPOINT: address})
    assert caught.value.field == ENDPOINT


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"])
def test_a_protocol_that_triton_lacks_is_refused(variable: str) -> None:
    with pytest.raises(InvalidInputError, match="over HTTP alone") as caught:
        traces_endpoint({ENDPOINT: "http://collector:4317", variable: "grpc"})
    assert caught.value.field == variable


def test_without_the_exporter_a_platforms_variable_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        export_traces("x")
    assert install_command("otel") in caplog.text


def test_a_collector_that_is_down_does_not_hold_the_end_of_a_process() -> None:
    """OpenTelemetry's own end tries again for half a minute, longer than a stop may take."""
    program = """
import atexit, time
from resrank.core.tracing import export_traces, span
began = []
atexit.register(lambda: print(time.monotonic() - began[0]))  # runs last, since it was registered first
export_traces("x")
for _ in range(600):
    with span("a"):
        pass
began.append(time.monotonic())
"""
    environment = {**os.environ, ENDPOINT: "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert float(done.stdout) < LAST_S + 5


def test_a_library_is_imported_without_the_sdk() -> None:
    program = "import sys, resrank.core.tracing; print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
