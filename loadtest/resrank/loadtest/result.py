"""What a run left behind."""

from __future__ import annotations

from dataclasses import dataclass

from resrank.loadtest.recording import Recording
from resrank.loadtest.scenario import Scenario
from resrank.loadtest.server_metrics import ServerMetrics


@dataclass(frozen=True)
class RunResult:
    """Everything that a report is made of.

    Attributes:
        scenario: What ran.
        recording: Of all processes.
        metrics: Of the server.
        epoch: When it started, in seconds since the epoch.
        seconds: How much of the scenario ran.
        processes: How many made the load.
        problems: Why the figures are not those of the scenario; empty when they are.
    """

    scenario: Scenario
    recording: Recording
    metrics: ServerMetrics
    epoch: float
    seconds: float
    processes: int
    problems: tuple[str, ...] = ()
