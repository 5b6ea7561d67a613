"""What a master knows of its workers: when they are done, and when one is lost. Its workers stay for its last run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resrank.loadtest.arrivals import poisson_arrivals, stream_rng
from resrank.loadtest.scenario import load_scenario
from resrank.stack.ports import choose_ports

from .conftest import ROOT

SCENARIO = """
name: shared
mix: {embed: 1}
load:
  kind: open
  phases: [{name: steady, rate: 40, duration_s: 2}]
deadline_s: 5
seed: 4
"""
LATE_S = 4.0
"""Later than locust's own reports, which come every 3 s: the last of them already tells that no user is left."""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture
def start(scenario: Path) -> Iterator[Start]:
    """``start(ROLE, NUMBER)`` starts a process of the load test."""
    (port,) = choose_ports("127.0.0.1", None)
    started: list[subprocess.Popen[str]] = []

    def begin(role: str, number: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "support.shared_load", role, str(scenario), str(port), str(number)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=ROOT / "tests", text=True, **pipes))  # type: ignore[call-overload]
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, errors = process.communicate(timeout=90)
    return process.returncode, out or errors


def calls(scenario: Path, workers: int) -> int:
    profile = load_scenario(scenario).profile
    streams = [poisson_arrivals(profile, stream_rng(4, workers + index), share=1 / workers) for index in range(workers)]
    return sum(len(list(stream)) for stream in streams)


def test_a_worker_that_tells_late_is_not_lost(start: Start, scenario: Path) -> None:
    workers = [start("worker", 0), start("worker", LATE_S)]
    code, told = finish(start("master", 2))
    assert code == 0, told
    assert json.loads(told) == {"calls": calls(scenario, 2), "processes": 2, "problems": []}
    assert [finish(worker)[0] for worker in workers] == [0, 0]


def test_a_worker_that_died_is_lost(start: Start) -> None:
    workers = [start("worker", 0), start("worker", 600)]
    master = start("master", 2)
    assert finish(workers[0])[0] == 0  # the run has ended
    workers[1].kill()
    code, told = finish(master)
    assert code == 0, told
    (problem,) = json.loads(told)["problems"]
    assert problem.startswith("1 of 2 workers were lost")


def test_workers_of_the_web_interface_stay_for_the_next_run(start: Start, scenario: Path) -> None:
    workers = [start("worker", 0), start("worker", 0)]
    master = start("web", 2)
    assert master.stdout is not None
    runs: list[dict[str, Any]] = [json.loads(master.stdout.readline()) for _ in range(2)]
    assert runs == 2 * [{"calls": calls(scenario, 2), "processes": 2, "problems": []}]
    assert [worker.poll() for worker in workers] == [None, None]
    workers[0].send_signal(signal.SIGINT)
    assert finish(workers[0])[0] == 0, "told to stop between runs"
    code, told = finish(master)
    assert code == 0, told
    assert finish(workers[1])[0] == 0, "its master has quit"
