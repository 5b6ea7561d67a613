from __future__ import annotations

import pytest
from opentelemetry import trace

from resrank.client import triton_calls
from resrank.client.calls import Call, Server
from resrank.client.settings import ClientSettings
from resrank.client.traces import call_span, caller_context, request_span, trace_metadata
from resrank.core.errors import InvalidInputError, QueueFullError
from resrank.core.names import Model
from resrank.core.tracing import read_context, span, write_traceparent
from support.spans import Spans

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OWN = TRACEPARENT.replace("b7ad", "00f0")
CALL: Call[None] = Call(Server.TRITON, "ModelInfer", "model 'rerank'", lambda _: None, lambda _: None)


def test_the_calls_own_context_goes_before_the_constructors_and_that_before_the_current_one() -> None:
    settings = ClientSettings(traceparent=lambda: TRACEPARENT)
    assert write_traceparent(caller_context(settings, None)) == TRACEPARENT
    assert write_traceparent(caller_context(settings, OWN)) == OWN
    assert write_traceparent(caller_context(ClientSettings(), None)) is None
    with span("application", context=read_context(OWN)):
        assert write_traceparent(caller_context(ClientSettings(), None)) == OWN
        assert write_traceparent(caller_context(settings, None)) == TRACEPARENT


@pytest.mark.parametrize("traceparent", ["", "00-abc-def-01", TRACEPARENT.upper(), TRACEPARENT + "-x", 7])
def test_a_malformed_trace_context_is_refused(traceparent: str) -> None:
    with pytest.raises(InvalidInputError, match="traceparent"):
        caller_context(ClientSettings(), traceparent)
    with pytest.raises(InvalidInputError, match="traceparent"):
        caller_context(ClientSettings(traceparent=lambda: traceparent), None)


def test_a_request_carries_its_own_span(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = Spans(monkeypatch)
    with call_span("rerank", read_context(TRACEPARENT)) as context, request_span(CALL, "host:1", context) as metadata:
        pass
    request = spans.named("ModelInfer model 'rerank'")
    assert request.context is not None
    assert dict(metadata) == {"traceparent": f"00-{TRACEPARENT.split('-')[1]}-{request.context.span_id:016x}-01"}
    assert [(made.name, spans.parent_of(made)) for made in spans.ended()] == [
        ("ModelInfer model 'rerank'", "resrank rerank"),
        ("resrank rerank", "b7ad6b7169203331"),
    ]
    assert request.kind is trace.SpanKind.CLIENT
    assert dict(request.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.method": "ModelInfer",
        "server.address": "host:1",
    }


def test_a_request_that_failed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        with call_span("rerank", read_context("")) as context, request_span(CALL, "host:1", context):
            raise QueueFullError("full")

    spans = Spans(monkeypatch)
    with pytest.raises(QueueFullError):
        refused()
    outcomes = [(made.name, (made.attributes or {}).get("resrank.outcome")) for made in spans.ended()]
    assert outcomes == [("ModelInfer model 'rerank'", "shed"), ("resrank rerank", "shed")]


def test_triton_is_not_told_of_a_trace_that_was_decided_against(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 2.51 would record it all the same; the sidecar knows better, and its log names the trace."""
    Spans(monkeypatch, share=0.0)
    with call_span("rerank", read_context("")) as context:
        decided = write_traceparent(context)
        assert decided is not None
        assert int(decided.rpartition("-")[2], 16) & 1 == 0, "sampled"
        assert trace_metadata(Server.TRITON) == ()
        assert trace_metadata(Server.RETRIEVAL) == (("traceparent", decided),)


def test_triton_is_told_of_a_trace_by_a_parameter_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It misreads a header now and then."""
    call = triton_calls.embed(Model.EMBED_QUERY, [b"a text"], truncate=False)
    assert "traceparent" not in call.build(1.0).parameters
    Spans(monkeypatch)
    with call_span("embed_queries", read_context("")) as context, request_span(call, "here", context) as metadata:
        assert call.build(1.0).parameters["traceparent"].string_param == dict(metadata)["traceparent"]
    Spans(monkeypatch, share=0.0)
    with call_span("embed_queries", read_context("")) as context, request_span(call, "here", context):
        assert "traceparent" not in call.build(1.0).parameters
