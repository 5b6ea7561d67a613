from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resrank.core.outcomes import Outcome
from resrank.loadtest.kinds import CallKind
from resrank.loadtest.recording import Recording
from resrank.loadtest.scenario import Scenario, load_scenario

ROOT = Path(__file__).parents[3]

SCENARIO = """
name: test
mix: {rerank: 1, embed: 3}
load:
  kind: open
  phases:
    - {name: first, rate: 20, duration_s: 10}
    - {name: burst, rate: 60, duration_s: 5}
    - {name: after, rate: 20, duration_s: 10}
deadline_s: 2
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """``write(text)`` makes a scenario file."""

    def make(text: str) -> Path:
        path = tmp_path / "scenario.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return make


@pytest.fixture
def scenario(write: Callable[[str], Path]) -> Scenario:
    return load_scenario(write(SCENARIO))


def record(*calls: tuple[float, float], kind: CallKind = CallKind.RERANK, outcome: Outcome = Outcome.OK) -> Recording:
    """A recording of calls, each given by its start and its latency in seconds."""
    recording = Recording()
    add(recording, calls, kind=kind, outcome=outcome)
    return recording


def add(recording: Recording, calls: Any, *, kind: CallKind = CallKind.RERANK, outcome: Outcome = Outcome.OK) -> None:
    message = "" if outcome is Outcome.OK else f"it is {outcome}"
    for start, latency in np.asarray(calls).tolist():
        recording.add(kind, outcome, start=start, sent=start, end=start + latency, message=message)
