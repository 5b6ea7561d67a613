"""What can be seen of a live stack: one request as one trace, and every metric that dashboard and alerts ask for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import NoOpTracer, format_trace_id

from resrank.client import InvalidInputError, ResRankClient
from resrank.core.tracing import span
from resrank.stack.local_stack import LocalStack
from resrank.stack.ports import choose_ports
from resrank.stack.trace_collector import TraceCollector, TraceSpan
from resrank.stack.trace_export import TraceExport

from .conftest import Exported
from .test_search import PASSAGES, QUERY, fill

DEPLOY = Path(__file__).parents[3] / "deploy"

CANDIDATES = 20  # two passes of at most 16
QUICKLY = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
QUIET_S = 1.0  # each process sends what it has ten times as often

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
        """What arrives of a call's trace, once it is complete.

        Triton's own spans are looked for, and it loses the way to one trace in a hundred (`request_trace`): then the
        call is made once more.
        """
        try:
            return self.arrived(self._asked(ask), complete)
        except AssertionError:
            return self.arrived(self._asked(ask), complete)

    @staticmethod
    def _asked(ask: Callable[[], object]) -> str:
        with span("application") as outer:
            ask()
        return format_trace_id(outer.get_span_context().trace_id)

    def arrived(self, trace_id: str, complete: Callable[[Tree], bool]) -> Tree:
        """The tree once it is complete and nothing more of it comes."""
        until = time.monotonic() + 60
        came, spans = time.monotonic(), 0
        while True:
            tree = Tree(self.collector.trace(trace_id))
            if len(tree.spans) > spans:
                came, spans = time.monotonic(), len(tree.spans)
            if complete(tree) and time.monotonic() - came > QUIET_S:
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
            LocalStack(made.repository, Path(folder) / "index", http=True, trace_export=export) as stack,
            ResRankClient(stack.triton.grpc_address, retrieval=stack.sidecar.address) as client,
        ):
            fill(stack.sidecar.address, client.encoder_sha256(), client.embed_passages(PASSAGES))
            yield Traced(stack, collector, client)


def test_a_search_step_by_step_is_one_tree(traced: Traced) -> None:
    tree = traced.tree(
        lambda: traced.client.search(QUERY, candidates=12),
        lambda tree: "residual_scoring" in tree.of("rerank_embedded") and "reranker compute" in tree.of("reranker"),
    )
    assert tree.roots == ["application"]
    assert tree.of("application") == ["resrank search"]
    assert tree.of("resrank search") == [
        "ModelInfer model 'embed_query'",
        "Search search",
        "ModelInfer model 'rerank_embedded'",
    ]
    assert tree.of("Search search") == ["retrieval Search"]
    assert tree.of("retrieval Search") == ["queue", "compute"]
    assert set(tree.of("ModelInfer model 'rerank_embedded'")) == {"InferRequest"}
    # Triton's own spans of the ensemble; below the engines those of where their requests wait and are computed.
    assert tree.of("rerank_embedded") == ["rerank_prompt", "reranker", "residual_scoring"]
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
        lambda tree: len(tree.of("reranker")) == 4 and len(tree.of("score_pass")) == 6 and bool(tree.of("search")),
    )
    assert tree.roots == ["application"]
    assert tree.of("resrank search") == ["ModelInfer model 'search'"]
    parts = [name for name in tree.of("search") if name != "compute"]  # Triton's own: handing the request over
    assert parts == ["embed_query", "retrieve", "score_pass", "score_pass"]
    assert tree.of("embed_query") == ["query_tokenizer", "encoder"]
    assert set(tree.of("encoder")) == {"encoder queue", "encoder compute"}
    assert tree.of("retrieve") == ["retrieval Search"]
    assert set(tree.of("compute")) == STAGES
    assert sorted(tree.of("score_pass")) == sorted(["rerank_prompt", "reranker", "residual_scoring"] * 2)
    assert set(tree.of("reranker")) == {"reranker queue", "reranker compute"}
    counted = [made.attributes["resrank.candidates"] for made in tree.spans if made.name == "score_pass"]
    assert sum(counted) == CANDIDATES  # type: ignore[arg-type]


def test_texts_to_rerank_show_what_is_encoded_for_them(traced: Traced) -> None:
    tree = traced.tree(
        lambda: traced.client.rerank(QUERY, passages=["a text of its own", "and another"]),
        lambda tree: (
            "residual_scoring compute" in tree.of("rerank")
            and {"embed_passage", "rerank"} <= set(tree.of("rerank_text"))
            and "encoder compute" in tree.of("embed_passage")
        ),
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


@pytest.fixture(scope="module")
def gateway(traced: Traced) -> str:
    """``host:port`` of the gateway before the stack."""
    assert traced.stack.gateway is not None
    return traced.stack.gateway.address


def test_a_request_over_http_is_one_tree(traced: Traced, gateway: str) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    body = json.dumps({"query": QUERY, "k": 3, "candidates": 12}).encode()
    headers = {"Content-Type": "application/json", "traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    request = urllib.request.Request(f"http://{gateway}/v1/search", body, headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
        assert answer.status == 200

    def of_the_caller(tree: Tree) -> list[Any]:
        return [span for span in tree.spans if span.parent_id == "b7ad6b7169203331"]

    tree = traced.arrived(
        trace_id,
        lambda tree: (
            len(tree.roots) == 1 and len(of_the_caller(tree)) == 1 and "reranker compute" in tree.of("reranker")
        ),
    )
    (root,) = of_the_caller(tree)
    assert root.service == "resrank-gateway"
    assert "resrank search" in tree.of(root.name)
    assert {made.service for made in tree.spans} == {"resrank-gateway", "resrank-triton", "resrank-retrieval"}
    assert QUERY not in str(tree.spans)


@pytest.fixture(scope="module")
def pages(traced: Traced, gateway: str) -> dict[str, str]:
    """Job to ``host:port`` of its metrics page."""
    sidecar = traced.stack.sidecar.metrics_address
    assert sidecar is not None
    triton = traced.stack.triton.metrics_address
    return {"resrank-triton": triton, "resrank-retrieval": sidecar, "resrank-gateway": gateway}


def expressions() -> dict[str, str]:
    """Every query of dashboard and alerts."""
    panels = json.loads((DEPLOY / "grafana" / "resrank.json").read_text())["panels"]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
    asked = {
        f"{panel['title']}, {target['refId']}": target["expr"]
        for panel in panels
        for target in panel.get("targets", [])
    }
    return asked | {rule["alert"]: rule["expr"] for rule in rules}


def names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:resrank|nv|process)_\w+", re.sub(r'"[^"]*"', "", expression)))


def use(traced: Traced, gateway: str) -> None:
    """A little of everything."""
    traced.client.search(QUERY, candidates=12)
    traced.client.search(QUERY, candidates=12, route="server")
    traced.client.rerank(QUERY, passages=PASSAGES[:3])
    body = json.dumps({"query": QUERY, "documents": PASSAGES[:3]}).encode()
    request = urllib.request.Request(f"http://{gateway}/v1/rerank", body, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
        assert len(json.load(answer)["results"]) == 3


def test_every_metric_of_dashboard_and_alerts_is_on_a_page(traced: Traced, gateway: str, pages: dict[str, str]) -> None:
    use(traced, gateway)
    found = set()
    for address in pages.values():
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{address}/metrics") as page:
            # As it is written: the parser of prometheus-client gives Triton's counters an ending that they have not.
            found |= set(re.findall(r"^(?:# TYPE )?(\w+)[{ ]", page.read().decode(), re.MULTILINE))
    wanted = set().union(*map(names, expressions().values()))
    assert len(wanted) > 25
    assert wanted - found == {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus on PATH: Debian's package has it")
def test_a_real_prometheus_answers_every_query(
    traced: Traced, gateway: str, pages: dict[str, str], tmp_path: Path
) -> None:
    settings = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    shutil.copy(DEPLOY / "prometheus" / "alerts.yaml", tmp_path)
    for job in settings["scrape_configs"]:
        job["static_configs"] = [{"targets": [pages[job["job_name"]]]}]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    (port,) = choose_ports("127.0.0.1", None)
    options = {
        "config.file": tmp_path / "prometheus.yaml",
        "storage.tsdb.path": tmp_path / "data",
        "web.listen-address": f"127.0.0.1:{port}",
    }
    command = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(path: str, **query: str) -> Any:
        try:
            with opener.open(f"http://127.0.0.1:{port}/api/v1/{path}?{urlencode(query)}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{query}: {error.read().decode()}") from error

    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            until = time.monotonic() + 60
            while True:  # used all the while, so that there are rates
                use(traced, gateway)
                assert time.monotonic() < until, (tmp_path / "log").read_text()
                try:
                    empty = [
                        title
                        for title, expression in expressions().items()
                        if not ask("query", query=expression.replace("$__rate_interval", "20s"))["result"]
                    ]
                except OSError:  # not listening yet
                    time.sleep(0.5)
                    continue
                # Nothing is wrong with this stack, which has no GPU and whose reranker never failed.
                if all(title.startswith(("ResRank", "GPU, ", "Under way, not reranked, B")) for title in empty):
                    break
            targets = ask("targets")["activeTargets"]
            assert {(target["labels"]["job"], target["health"]) for target in targets} == {(job, "up") for job in pages}
            (group,) = ask("rules")["groups"]
            assert {rule["health"] for rule in group["rules"]} == {"ok"}
        finally:
            process.terminate()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on PATH: Debian's package prometheus has it")
def test_alerts_fire_when_they_should() -> None:
    for command in (("check", "config", "prometheus.yaml"), ("test", "rules", "alerts_test.yaml")):
        done = subprocess.run(
            ["promtool", *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
