"""The report folder has what a reader and a program need, and nothing from outside."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from resrank.core.outcomes import Outcome
from resrank.loadtest.console import print_progress, print_saturation, print_summary
from resrank.loadtest.kinds import CallKind
from resrank.loadtest.report import figure, write_report, write_saturation
from resrank.loadtest.result import RunResult
from resrank.loadtest.saturation import Probe, Saturation, Search
from resrank.loadtest.scenario import Scenario
from resrank.loadtest.server_metrics import ModelCounters, ServerMetrics
from resrank.loadtest.slo import LatencyBounds, LatencySlo, PhaseSlo, Slo
from resrank.loadtest.summary import Summary, summarize

from .conftest import add, record

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def summary(scenario: Scenario) -> Summary:
    slo = Slo(latency_ms=LatencySlo(rerank=LatencyBounds(p95=50)), max_non_ok_share=0.5)
    *others, last = scenario.load.phases
    phases = (*others, last.model_copy(update={"slo": PhaseSlo(max_recovery_s=5)}))
    load = scenario.load.model_copy(update={"phases": phases})
    scenario = scenario.model_copy(update={"slo": slo, "load": load, "description": "<b>Bold</b> & more."})
    recording = record(*[(at / 10, 0.1) for at in range(250)])
    add(recording, [(10 + at / 10, 0.03) for at in range(50)], outcome=Outcome.SHED)
    add(recording, [(at / 5, 0.02) for at in range(125)], kind=CallKind.EMBED)
    recording.messages["shed"] = "QueueFullError: <script>full</script>"
    recording.held_back = 7
    metrics = ServerMetrics(
        [
            (float(at), {"reranker": ModelCounters(10.0 * at, at, 10.0 * at, 5.0 * at, 3e4 * at, 2e5 * at)})
            for at in range(26)
        ]
    )
    return summarize(RunResult(scenario, recording, metrics, 1.7e9, 25.0, 2))


def test_every_file_is_written(summary: Summary, tmp_path: Path) -> None:
    write_report(summary, tmp_path / "new" / "report")
    names = {path.name for path in (tmp_path / "new" / "report").iterdir()}
    assert names == {"report.html", "summary.json", "timeline.csv", "server.csv", "timeline.png", "distribution.png"}


def test_the_page_needs_nothing_from_outside_and_escapes_what_it_shows(summary: Summary, tmp_path: Path) -> None:
    write_report(summary, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert len(sources) == 2
    assert all(source.startswith("data:") for source in sources)
    assert "url(" not in page
    images = [base64.b64decode(image) for image in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert images == [(tmp_path / name).read_bytes() for name in ("timeline.png", "distribution.png")]
    assert all(image.startswith(PNG) for image in images)
    assert "&lt;b&gt;Bold&lt;/b&gt; &amp; more." in page
    assert "&lt;script&gt;full" in page
    assert "<script" not in page
    for told in ("SLO missed", "rerank p95", "7 calls waited in the load", "reranker", "burst", "locust"):
        assert told in page


def test_the_summary_is_for_programs(summary: Summary, tmp_path: Path) -> None:
    write_report(summary, tmp_path)
    document = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert document["kept"] is False
    assert document["started"] == "2023-11-14T22:13:20+00:00"
    verdicts = [(verdict["what"], verdict["kept"]) for verdict in document["slo"]]
    assert verdicts == [("rerank p95", False), ("share of calls not ok", True), ("recovery", True)]
    assert document["total"]["kinds"]["rerank"]["outcomes"]["ok"] == 250
    assert document["total"]["kinds"]["rerank"]["latency_ms"]["p95"] == pytest.approx(100)
    assert document["total"]["non_ok_share"] == pytest.approx(50 / 425)
    assert document["phases"][1]["goodput_per_s"] == pytest.approx(15)
    assert document["generator"]["held_back"] == 7
    assert document["server"]["reranker"]["queue_ms"] == pytest.approx(3)
    assert document["server"]["reranker"]["compute_ms"] == pytest.approx(20)
    assert {"python", "locust", "resrank"} <= document["versions"].keys()
    assert Scenario.model_validate_json(json.dumps(document["scenario"])) == summary.result.scenario


def test_the_tables_are_on_one_time_axis(summary: Summary, tmp_path: Path) -> None:
    write_report(summary, tmp_path)
    with (tmp_path / "timeline.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 25 * 2
    assert sum(int(row["shed"]) for row in rows) == 50
    assert {row["p95_ms"] for row in rows if row["kind"] == "rerank"} == {"100.0"}
    with (tmp_path / "server.csv").open(newline="") as file:
        server = list(csv.DictReader(file))
    assert [float(row["end"]) for row in server] == list(range(1, 26))


def test_a_run_without_calls_and_metrics_has_a_report_all_the_same(scenario: Scenario, tmp_path: Path) -> None:
    metrics = ServerMetrics(problem="http://127.0.0.1:9/metrics cannot be read: refused")
    summary = summarize(RunResult(scenario, record(), metrics, 0.0, 0.4, 1, ("stopped after 0.4 s of 25 s",)))
    write_report(summary, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "stopped after 0.4 s of 25 s" in page
    assert "metrics cannot be read" in page


def test_the_screen_tells_the_verdicts(summary: Summary) -> None:
    screen = io.StringIO()
    print_summary(summary, Console(file=screen, width=120))
    said = screen.getvalue()
    assert re.search(r"rerank +250 +50 +100 +100 +100 +100", said)
    assert "✗ whole run: rerank p95 100 ms (≤ 50)" in said
    assert "✓ after: recovery 0 s (≤ 5)" in said
    assert "burst (60): 15/s ended well, shed within 30 ms (p95)" in said
    assert "7 calls waited in the load generator" in said
    print_progress(summary.calls, 15.0, 5.0, Console(file=screen, width=120))
    assert "ok 75, shed 50 · rerank p95 100 ms" in screen.getvalue()


def test_a_search_is_written_and_told(summary: Summary, scenario: Scenario, tmp_path: Path) -> None:
    search = Search(low=1, high=8, tolerance=0.1, warmup_s=1, probe_s=5)
    found = Saturation(4.0, 4.3, (Probe(4.0, summary),))
    document = json.loads(write_saturation(found, search, scenario, tmp_path).read_text())
    assert (document["rate"], document["missed"], document["search"]["tolerance"]) == (4.0, 4.3, 0.1)
    assert document["probes"][0]["kinds"]["rerank"]["latency_ms"]["p50"] == pytest.approx(100)
    screen = io.StringIO()
    for result in (found, Saturation(None, 1.0, ()), Saturation(8.0, None, ())):
        print_saturation(result, search, Console(file=screen, width=120))
    assert screen.getvalue().splitlines() == [
        "saturation: 4 calls/s keep the objectives, 4.3 miss them",
        "even 1 calls/s miss the objectives: search lower, or ask for less",
        "saturation: above 8 calls/s, where the search ends",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0.0, "0"), (0.01234, "0.0123"), (12.34, "12.3"), (99.96, "100"), (1234.5, "1,234")],
)
def test_figures_have_three_digits(value: float | None, shown: str) -> None:
    assert figure(value) == shown
