"""One request, one trace: from the client through every model and the sidecar, waiting and computing apart."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import NoOpTracer, format_trace_id

from resrank.client import InvalidInputError, ResRankClient
from resrank.core.tracing import span
from resrank.stack.local_stack import LocalStack
from resrank.stack.trace_collector import TraceCollector, TraceSpan
from resrank.stack.trace_export import TraceExport

from .conftest import Exported
from .test_search import PASSAGES, QUERY, fill

CANDIDATES = 20  # two passes of at most 16
QUICKLY = {"OTEL_BSP_SCHEDULE_DELAY": "100"}

ENCODING = {"query_tokenizer compute", "encoder queue", "encoder compute"}
STAGES = {"dense", "lexical", "fusion", "gather"}


class Tree:
    """A trace by the names of its spans."""

    def __init__(self, spans: list[TraceSpan]) -> None:
        self.spans = spans
        self._names = {span.span_id: span.name for span in spans}

    def of(self, parent: str) -> list[str]:
        """Names of the parts of a span, in order."""
        return [span.name for span in self.spans if self._names.get(span.parent_id) == parent]

    def named(self, name: str, parent: str) -> TraceSpan:
        (found,) = [span for span in self.spans if span.name == name and self._names.get(span.parent_id) == parent]
        return found

    @property
    def roots(self) -> list[str]:
        return [span.name for span in self.spans if span.parent_id not in self._names]


@dataclass(frozen=True)
class Traced:
    stack: LocalStack
    collector: TraceCollector
    client: ResRankClient

    def tree(self, ask: Callable[[], object], complete: Callable[[Tree], bool]) -> Tree:
        """What arrives of a call's trace, once it is complete."""
        with span("application") as outer:
            ask()
        return self.arrived(format_trace_id(outer.get_span_context().trace_id), complete)

    def arrived(self, trace_id: str, complete: Callable[[Tree], bool]) -> Tree:
        until = time.monotonic() + 20
        while True:
            tree = Tree(self.collector.trace(trace_id))
            if complete(tree):
                return tree
            assert time.monotonic() < until, [(made.name, made.parent_id) for made in tree.spans]
            time.sleep(0.1)


@pytest.fixture(scope="module")
def traced(exported: Callable[[str], Exported]) -> Iterator[Traced]:
    made = exported("query_residual-linear-openvino")
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        TraceCollector() as collector,
    ):
        provider = TracerProvider(resource=Resource({"service.name": "application"}), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{collector.endpoint}/v1/traces")))
        patch.setattr("resrank.core.tracing._TRACER", provider.get_tracer("application"))
        export = TraceExport.read(collector.endpoint, {})
        assert export is not None
        export = replace(export, environment={**export.environment, **QUICKLY})
        with (
            LocalStack(made.repository, Path(folder) / "index", trace_export=export) as stack,
            ResRankClient(stack.triton.grpc_address, retrieval=stack.sidecar.address) as client,
        ):
            fill(stack.sidecar.address, client.encoder_sha256(), client.embed_passages(PASSAGES))
            yield Traced(stack, collector, client)


def test_a_search_step_by_step_is_one_tree(traced: Traced) -> None:
    tree = traced.tree(
        lambda: traced.client.search(QUERY, candidates=12),
        lambda tree: "residual_scoring" in tree.of("rerank") and "reranker compute" in tree.of("reranker"),
    )
    assert tree.roots == ["application"]
    assert tree.of("application") == ["resrank search"]
    assert tree.of("resrank search") == [
        "ModelInfer model 'embed_query'",
        "Search search",
        "ModelInfer model 'rerank'",
    ]
    assert tree.of("Search search") == ["retrieval Search"]
    assert tree.of("retrieval Search") == ["queue", "compute"]
    assert set(tree.of("ModelInfer model 'rerank'")) == {"InferRequest"}
    # Triton's own spans of the ensemble; below the engines those of where their requests wait and are computed.
    assert tree.of("rerank") == ["rerank_prompt", "reranker", "query_tokenizer", "encoder", "residual_scoring"]
    assert {"reranker queue", "reranker compute"} <= set(tree.of("reranker"))
    assert {"encoder queue", "encoder compute"} <= set(tree.of("encoder"))
    queue, compute = tree.named("reranker queue", "reranker"), tree.named("reranker compute", "reranker")
    assert queue.start_ns <= queue.end_ns <= compute.start_ns < compute.end_ns
    assert compute.attributes["resrank.batch_requests"] == 1
    services = {made.service for made in tree.spans}
    assert services == {"application", "resrank-triton", "resrank-retrieval"}


def test_a_search_inside_triton_is_one_tree_too(traced: Traced) -> None:
    tree = traced.tree(
        lambda: traced.client.search(QUERY, candidates=CANDIDATES, route="server"),
        lambda tree: len(tree.of("residual_scoring")) == 2 and len(tree.of("score_pass")) == 6,
    )
    assert tree.roots == ["application"]
    assert tree.of("resrank search") == ["ModelInfer model 'search'"]
    parts = [name for name in tree.of("search") if name != "compute"]  # Triton's own: handing the request over
    assert parts == ["embed_query", "retrieve", "score_pass", "score_pass"]
    assert set(tree.of("embed_query")) == ENCODING
    assert tree.of("retrieve") == ["retrieval Search"]
    assert set(tree.of("compute")) == STAGES
    assert sorted(tree.of("score_pass")) == sorted(["rerank_prompt", "reranker", "residual_scoring"] * 2)
    assert set(tree.of("reranker")) == {"reranker queue", "reranker compute"}
    counted = [made.attributes["resrank.candidates"] for made in tree.spans if made.name == "score_pass"]
    assert sum(counted) == CANDIDATES  # type: ignore[arg-type]


def test_texts_to_rerank_show_what_is_encoded_for_them(traced: Traced) -> None:
    tree = traced.tree(
        lambda: traced.client.rerank(QUERY, passages=["a text of its own", "and another"]),
        lambda tree: "residual_scoring compute" in tree.of("rerank"),
    )
    assert [name for name in tree.of("rerank_text") if name != "compute"] == ["embed_passage", "rerank"]
    assert set(tree.of("embed_passage")) == {"passage_tokenizer compute", "encoder queue", "encoder compute"}
    assert tree.named("encoder compute", "embed_passage").attributes["resrank.batch_rows"] == 2


def test_a_refusal_is_seen_where_it_happened_and_holds_no_text(traced: Traced) -> None:
    query = "astronauts " * 60

    def ask() -> None:
        with pytest.raises(InvalidInputError):
            traced.client.search(query, candidates=12, route="server")

    tree = traced.tree(ask, lambda tree: "embed_query" in tree.of("search"))
    for name, parent in (("embed_query", "search"), ("resrank search", "application")):
        failed = tree.named(name, parent)
        assert failed.failed
        assert failed.attributes["resrank.outcome"] == "invalid"
    said = " ".join(f"{made.name} {made.attributes}" for made in tree.spans)
    assert "astronauts" not in said


def test_a_request_without_a_context_begins_a_trace_in_triton(traced: Traced) -> None:
    """Who has no OpenTelemetry at all is seen all the same; `OTEL_TRACES_SAMPLER` decides how many of them."""
    time.sleep(1)  # what came before has arrived
    list(traced.collector.take_quiet(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resrank.core.tracing._TRACER", NoOpTracer())
        traced.client.rerank(QUERY, passages=["a text"])
    until = time.monotonic() + 20
    while not (came := list(traced.collector.take_quiet(0.5))) and time.monotonic() < until:
        time.sleep(0.1)
    ((_, spans),) = came
    tree = Tree(spans)
    assert tree.roots == ["InferRequest"]
    assert tree.of("InferRequest") == ["rerank_text"]
    assert "rerank" in tree.of("rerank_text")
