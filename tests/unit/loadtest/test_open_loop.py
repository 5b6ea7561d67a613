"""A server that stands still cannot hide it in the open loop: latency counts from when a call should have started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resrank.core.outcomes import Outcome
from resrank.loadtest.arrivals import poisson_arrivals, stream_rng
from resrank.loadtest.kinds import OUTCOMES
from resrank.loadtest.scenario import load_scenario

from .conftest import ROOT

SCENARIO = """
name: stall
mix: {{embed: 1}}
load:
  kind: open
  max_in_flight: {max_in_flight}
  phases: [{{name: steady, rate: 50, duration_s: 3}}]
deadline_s: {deadline_s}
seed: 4
"""
OK, DEADLINE = OUTCOMES.index(Outcome.OK), OUTCOMES.index(Outcome.DEADLINE)

# A shared machine may hold a process up for this long.
SLACK_S = 0.25


RUNS = {
    "free": {"max_in_flight": 512, "deadline_s": 10},
    "bounded": {"max_in_flight": 2, "deadline_s": 10},
    "hurried": {"max_in_flight": 512, "deadline_s": 0.3},
    "deaf": {"max_in_flight": 2, "deadline_s": 0.3},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """3 s of load on a server that stands still from 1 s to 2 s; the calls of ``deaf`` do not end by their deadline."""
    processes = {}
    for name, fields in RUNS.items():
        scenario = tmp_path_factory.mktemp(name) / "scenario.yaml"
        scenario.write_text(SCENARIO.format(**fields))
        command = [sys.executable, "-m", "support.stalled_server", str(scenario), "1", "2", str(int(name != "deaf"))]
        processes[name] = (
            scenario,
            subprocess.Popen(command, cwd=ROOT / "tests", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
        )
    return {name: read(scenario, process) for name, (scenario, process) in processes.items()}


def read(scenario: Path, process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    found: dict[str, Any] = json.loads(out)
    for name in ("start", "latency", "late", "outcome"):
        found[name] = np.array(found[name])
    drawn = poisson_arrivals(load_scenario(scenario).profile, stream_rng(4, 1))
    np.testing.assert_allclose(found["start"], list(drawn))  # every arrival is recorded, at its own time
    assert found["problems"] == []
    assert found["locust"]["requests"] == len(found["start"])
    return found


def expect_wait_for_the_end_of_the_stall(found: dict[str, Any]) -> None:
    """A call that should have started within the stall ends when the stall does, however late it was sent."""
    held = (found["start"] > 1) & (found["start"] < 2)
    assert held.sum() > 30
    waits = found["latency"][held] - (2 - found["start"][held])
    assert waits.min() > -0.001
    assert np.median(waits) < SLACK_S
    before = found["latency"][found["start"] < 0.9]
    assert np.median(before) < SLACK_S


def test_calls_within_a_stall_are_sent_on_time_and_wait(runs: dict[str, dict[str, Any]]) -> None:
    found = runs["free"]
    expect_wait_for_the_end_of_the_stall(found)
    assert set(found["outcome"]) == {OK}
    assert np.median(found["late"]) < SLACK_S
    assert (found["held_back"], found["unsent"]) == (0, 0)
    assert found["locust"]["failures"] == 0


def test_calls_that_the_bound_holds_back_count_their_wait(runs: dict[str, dict[str, Any]]) -> None:
    found = runs["bounded"]
    expect_wait_for_the_end_of_the_stall(found)
    assert found["held_back"] > 30
    # All but the two that were under way were sent when the stall was over.
    held = (found["start"] > 1.2) & (found["start"] < 2)
    assert np.all(found["late"][held] >= 2 - found["start"][held] - 0.001)


def test_calls_end_by_the_deadline_that_counts_from_their_own_start(runs: dict[str, dict[str, Any]]) -> None:
    found = runs["hurried"]
    failed = found["outcome"] == DEADLINE
    assert failed.sum() > 20
    assert found["latency"][failed].min() >= 0.299
    assert np.median(found["latency"][failed]) < 0.3 + SLACK_S
    assert found["unsent"] == 0


def test_a_call_whose_time_is_over_is_never_sent(runs: dict[str, dict[str, Any]]) -> None:
    found = runs["deaf"]
    failed = found["outcome"] == DEADLINE
    assert failed.sum() > 20
    assert found["latency"][failed].min() >= 0.299
    assert 0 < found["unsent"] < failed.sum()
    assert found["locust"]["failures"] == failed.sum()
    assert found["locust"]["errors"] == ["deadline"]
