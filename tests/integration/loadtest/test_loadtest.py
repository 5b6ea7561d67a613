"""``resrank loadtest`` against real servers: reports, exit codes, workers, the web interface, saturation."""

from __future__ import annotations

import csv
import json
import re
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resrank.loadtest.arrivals import poisson_arrivals, stream_rng
from resrank.loadtest.scenario import load_scenario
from resrank.stack.ports import choose_ports

from .conftest import Finish, Stack

STEADY = """
name: steady
mix: {rerank: 2, rerank_text: 1, search: 2, embed: 3}
load:
  kind: open
  phases: [{name: steady, rate: 10, duration_s: 5}]
deadline_s: 10
candidates: {kind: uniform, low: 5, high: 30}
query_words: {kind: uniform, low: 2, high: 12}
search: {route: server}
embed: {texts: {kind: choice, values: [1, 150], weights: [9, 1]}}
slo:
  latency_ms: {rerank: {p95: 9000}, search: {p95: 9000}}
  max_non_ok_share: 0.2
"""
# Most calls cost the server 150 passes and this process next to nothing: on any machine the server is the slower.
OVERLOAD = """
name: overload
mix: {embed: 9, rerank: 1}
load:
  kind: open
  phases:
    - {name: before, rate: 5, duration_s: 2}
    - {name: burst, rate: 300, duration_s: 2, slo: {min_goodput: 290}}
    - {name: after, rate: 5, duration_s: 2}
deadline_s: 5
embed: {texts: {kind: fixed, value: 150}}
candidates: {kind: fixed, value: 100}
embeddings: random
"""
CLOSED = """
name: closed
mix: {embed: 1}
load:
  kind: closed
  think_time_s: 0.05
  phases: [{name: one, users: 1, duration_s: 1}, {name: three, users: 3, duration_s: 2}]
deadline_s: 5
"""
SHARED = """
name: shared
mix: {embed: 1}
load:
  kind: open
  phases: [{name: steady, rate: 20, duration_s: 3}]
deadline_s: 10
seed: 2
"""


def report(folder: Path) -> dict[str, Any]:
    """A report's summary; its other files must be there, too."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    for name in ("timeline.png", "distribution.png", "timeline.csv"):
        assert (folder / name).stat().st_size > 0
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def test_a_run_that_keeps_its_objectives_reports_and_ends_with_0(stack: Stack, finish: Finish, tmp_path: Path) -> None:
    scenario, out = stack.scenario(tmp_path, STEADY), tmp_path / "report"
    code, said, errors = finish(stack.start("run", scenario, "--headless", "--out", out))
    assert code == 0, said + errors
    assert "✓ whole run: rerank p95" in said
    summary = report(out)
    profile = load_scenario(scenario).profile
    drawn = len(list(poisson_arrivals(profile, stream_rng(0, 1))))
    assert summary["total"]["calls"] == drawn
    assert summary["total"]["kinds"].keys() == {"rerank", "rerank_text", "search", "embed"}
    assert summary["total"]["outcomes"]["failed"] == summary["total"]["outcomes"]["invalid"] == 0
    assert summary["problems"] == []
    # Triton's account of the same seconds: its counters saw at least the reranks that ended well.
    kinds = summary["total"]["kinds"]
    reranks = sum(kinds[kind]["outcomes"]["ok"] for kind in ("rerank", "rerank_text", "search"))
    reranker = summary["server"]["reranker"]
    assert reranker["requests"] * reranker["end"] >= 0.8 * reranks
    assert reranker["compute_ms"] > 0
    searches = summary["server"]["search"]
    assert searches["requests"] * searches["end"] >= 0.8 * kinds["search"]["outcomes"]["ok"]
    with (out / "server.csv").open(newline="") as file:
        assert len({row["end"] for row in csv.DictReader(file)}) >= 3
    with (out / "locust_stats.csv").open(newline="") as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert int(rows["Aggregated"]["Request Count"]) == drawn


def test_an_overload_is_shed_and_a_missed_objective_ends_with_1(stack: Stack, finish: Finish, tmp_path: Path) -> None:
    scenario, out = stack.scenario(tmp_path, OVERLOAD), tmp_path / "report"
    code, said, errors = finish(stack.start("run", scenario, "--headless", "--out", out))
    assert code == 1, said + errors
    assert "✗ burst: goodput" in said
    summary = report(out)
    before, burst, after = summary["phases"]
    assert burst["outcomes"]["shed"] > 50
    assert burst["outcomes"]["ok"] > 0
    assert burst["time_to_shed_ms"]["calls"] == burst["outcomes"]["shed"]
    message = summary["first_messages"]["shed"]
    assert re.match("QueueFullError: model '(embed_query|rerank)': the server sheds load", message), message
    assert summary["total"]["outcomes"]["failed"] == 0
    assert before["calls"] + burst["calls"] + after["calls"] == summary["total"]["calls"]


def test_the_closed_loop_has_its_users_and_missing_metrics_are_told(
    stack: Stack, finish: Finish, tmp_path: Path
) -> None:
    scenario, out = stack.scenario(tmp_path, CLOSED), tmp_path / "report"
    (nothing,) = choose_ports("127.0.0.1", None)
    code, said, errors = finish(stack.start("run", scenario, "--headless", "--out", out, metrics=nothing))
    assert code == 0, said + errors
    summary = report(out)
    for phase, users, seconds in zip(summary["phases"], (1, 3), (1, 2), strict=True):
        # Little's law, with the think time's mean: users = throughput x (latency + think time).
        latency_s = phase["kinds"]["embed"]["latency_ms"]["mean"] / 1e3
        assert phase["calls"] / seconds * (latency_s + 0.05) == pytest.approx(users, rel=0.6)
    assert f"127.0.0.1:{nothing}/metrics cannot be read" in said
    assert summary["server"] == {}


def test_a_server_that_does_not_answer_ends_with_2_before_any_load(
    stack: Stack, finish: Finish, tmp_path: Path
) -> None:
    # By the server's route nobody but Triton has to reach the sidecar.
    scenario = stack.scenario(tmp_path, STEADY.replace("route: server", "route: client"))
    out = tmp_path / "report"
    (nothing,) = choose_ports("127.0.0.1", None)
    sentences = {"triton": "Error: readiness: no server answers", "retrieval": "the retrieval sidecar"}
    attempts = {
        server: stack.start("run", scenario, "--headless", "--out", out, **{server: nothing}) for server in sentences
    }
    for server, process in attempts.items():
        code, said, errors = finish(process)
        assert (code, said) == (2, "")
        (told,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
        assert sentences[server] in told
    assert not out.exists()


def test_workers_share_the_load_and_the_master_reports_all_of_it(stack: Stack, finish: Finish, tmp_path: Path) -> None:
    scenario, out = stack.scenario(tmp_path, SHARED), tmp_path / "report"
    (port,) = choose_ports("127.0.0.1", None)
    common = ["run", scenario, "--headless", "--master-port", port, "--out", out]
    workers = [stack.start(*common, "--worker") for _ in range(2)]
    master = stack.start(*common, "--master", "--workers", 2)
    code, said, errors = finish(master)
    assert code == 0, said + errors
    assert [finish(worker)[0] for worker in workers] == [0, 0]
    summary = report(out)
    assert (summary["processes"], summary["problems"]) == (2, [])
    profile = load_scenario(scenario).profile
    streams = [list(poisson_arrivals(profile, stream_rng(2, 2 + index), share=0.5)) for index in range(2)]
    assert summary["total"]["calls"] == sum(map(len, streams))
    assert summary["total"]["outcomes"]["ok"] > 0


def test_a_worker_with_another_scenario_is_refused(stack: Stack, finish: Finish, tmp_path: Path) -> None:
    (port,) = choose_ports("127.0.0.1", None)
    paths = []
    for name, text in (("master", SHARED), ("worker", SHARED.replace("seed: 2", "seed: 3"))):
        (tmp_path / name).mkdir()
        paths.append(stack.scenario(tmp_path / name, text))
    worker = stack.start("run", paths[1], "--worker", "--master-port", port)
    master = stack.start("run", paths[0], "--headless", "--master", "--master-port", port, "--out", tmp_path / "out")
    code, _, errors = finish(master)
    assert code == 2
    assert "Error: a worker came with another scenario" in errors
    worker.send_signal(signal.SIGINT)
    finish(worker)


def test_the_web_interface_starts_runs_and_each_has_its_report(stack: Stack, finish: Finish, tmp_path: Path) -> None:
    scenario, out = stack.scenario(tmp_path, SHARED.replace("duration_s: 3", "duration_s: 1")), tmp_path / "report"
    (port,) = choose_ports("127.0.0.1", None)
    process = stack.start("run", scenario, "--web-port", port, "--out", out)
    try:
        page = until(lambda: fetch(f"http://127.0.0.1:{port}/"))
        assert "Locust" in page
        for number in (1, 2):
            assert json.loads(fetch(f"http://127.0.0.1:{port}/swarm", data=b""))["success"]
            until(lambda path=out / f"run-{number}" / "report.html": path.read_text())
            time.sleep(0.5)
            assert report(out / f"run-{number}")["total"]["calls"] > 0
        assert json.loads(fetch(f"http://127.0.0.1:{port}/stats/requests"))["state"] == "stopped"
    finally:
        process.send_signal(signal.SIGINT)
    code, said, errors = finish(process)
    assert code == 0, said + errors


def test_an_interrupt_reports_what_there_is_and_ends_with_130(stack: Stack, finish: Finish, tmp_path: Path) -> None:
    scenario, out = stack.scenario(tmp_path, SHARED.replace("duration_s: 3", "duration_s: 600")), tmp_path / "report"
    process = stack.start("run", scenario, "--headless", "--out", out)
    until((out / "locust_stats.csv").read_text)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    code, said, errors = finish(process)
    assert code == 130, said + errors
    summary = report(out)
    assert re.fullmatch(r"stopped after [\d.]+ s of 600 s", summary["problems"][0])
    assert 0 < summary["total"]["calls"] < 600
    assert not summary["kept"]


def test_the_search_for_the_highest_rate_ends_and_writes_what_it_found(
    stack: Stack, finish: Finish, tmp_path: Path
) -> None:
    # Kept at any rate, whatever else this machine does: the search has to end where it was told to.
    scenario, out = stack.scenario(tmp_path, SHARED + "slo: {max_non_ok_share: 1}"), tmp_path / "found"
    options = ["--low", 100, "--high", 200, "--probe", 1, "--warmup", 0, "--out", out]
    code, said, errors = finish(stack.start("saturate", scenario, *options))
    assert code == 0, said + errors
    found = json.loads((out / "saturation.json").read_text())
    assert (found["rate"], found["missed"]) == (200, None)
    assert [(probe["rate"], probe["end_s"]) for probe in found["probes"]] == [(100, 2), (200, 1)]
    for probe in found["probes"]:
        assert probe["calls"] == pytest.approx(200, abs=60)
    assert "saturation: above 200 calls/s" in said


def test_there_is_nothing_to_search_for_without_objectives(stack: Stack, finish: Finish, tmp_path: Path) -> None:
    code, _, errors = finish(stack.start("saturate", stack.scenario(tmp_path, CLOSED), "--out", tmp_path / "out"))
    assert code == 2
    assert "demands nothing of latency or outcomes" in errors


def fetch(url: str, data: bytes | None = None) -> str:
    with urllib.request.urlopen(url, data=data, timeout=10) as answer:
        return answer.read().decode()


def until(attempt: Callable[[], str], timeout_s: float = 60) -> str:
    """What an attempt gives as soon as it succeeds."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return attempt()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
