"""A run's figures and verdicts, for people and for programs."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from resrank.loadtest.figures import Figures, Latency, figures, recovery_s
from resrank.loadtest.recording import Calls
from resrank.loadtest.result import RunResult
from resrank.loadtest.scenario import RatePhase, UsersPhase
from resrank.loadtest.verdicts import WHOLE_RUN, Verdict, judge, judge_recovery, normal_window

_PACKAGES = ("resrank", "locust", "gevent", "grpcio", "numpy")


@dataclass(frozen=True)
class PhaseSummary:
    """One phase.

    Attributes:
        phase: As the scenario has it.
        figures: Of its calls.
        recovery_s: Seconds for which the phase before was felt in it; None in the first, and where that was to
            the end.
    """

    phase: RatePhase | UsersPhase
    figures: Figures
    recovery_s: float | None


@dataclass(frozen=True)
class Summary:
    """All of a run's figures.

    Attributes:
        result: The run.
        calls: All its calls.
        total: The figures of the whole run after its warm-up.
        phases: The phases that ran to their end.
        verdicts: What was demanded.
    """

    result: RunResult
    calls: Calls
    total: Figures
    phases: tuple[PhaseSummary, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def kept(self) -> bool:
        """Whether every objective is met, by a run that was complete."""
        return not self.result.problems and all(verdict.kept for verdict in self.verdicts)

    def as_json(self) -> dict[str, Any]:
        """The figures as plain dictionaries, lists, numbers and text."""
        result, scenario = self.result, self.result.scenario
        return {
            "kept": self.kept,
            "problems": list(result.problems),
            "started": datetime.fromtimestamp(result.epoch, UTC).isoformat(timespec="seconds"),
            "seconds": round(result.seconds, 3),
            "processes": result.processes,
            "slo": verdicts_as_json(self.verdicts),
            "total": figures_as_json(self.total),
            "phases": [
                {
                    "name": summary.phase.name,
                    "level": summary.phase.level,
                    "recovery_s": summary.recovery_s,
                    **figures_as_json(summary.figures),
                }
                for summary in self.phases
            ],
            "generator": {
                "held_back": result.recording.held_back,
                "unsent": result.recording.unsent,
                "late_ms": None if self.total.late is None else _latency_as_json(self.total.late),
            },
            "first_messages": dict(result.recording.messages),
            "server": {model: asdict(total) for model, total in result.metrics.totals().items()},
            "server_problem": result.metrics.problem,
            "versions": versions(),
            "scenario": scenario.model_dump(mode="json"),
        }


def summarize(result: RunResult) -> Summary:
    """Computes the figures and judges them."""
    scenario, calls = result.scenario, result.recording.calls()
    end = max(result.seconds, 1e-3)
    total = figures(calls, min(scenario.warmup_s, end / 2), end)
    phases = tuple(_phases(result, calls))
    verdicts = judge(scenario.slo, total, WHOLE_RUN)
    for summary in phases:
        slo, name, found = summary.phase.slo, summary.phase.name, summary.figures
        verdicts += judge(slo, found, name)
        recovery = judge_recovery(slo, summary.recovery_s, name)
        verdicts += [recovery] if recovery else []
    return Summary(result, calls, total, phases, tuple(verdicts))


def figures_as_json(found: Figures) -> dict[str, Any]:
    """One window's figures as plain dictionaries and numbers."""
    return {
        "start_s": found.start,
        "end_s": found.end,
        "calls": found.calls,
        "offered_per_s": found.offered,
        "goodput_per_s": found.goodput,
        "non_ok_share": found.non_ok_share,
        "outcomes": dict(found.outcomes),
        "kinds": {
            kind: {
                "outcomes": dict(outcomes),
                "latency_ms": None if kind not in found.latency else _latency_as_json(found.latency[kind]),
            }
            for kind, outcomes in found.outcomes_by_kind.items()
        },
        "time_to_shed_ms": None if found.time_to_shed is None else _latency_as_json(found.time_to_shed),
    }


def verdicts_as_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Objectives as plain dictionaries."""
    return [{**asdict(verdict), "bound": verdict.bound.value, "kept": verdict.kept} for verdict in verdicts]


def _latency_as_json(latency: Latency) -> dict[str, float]:
    return {"calls": latency.calls, "mean": latency.mean, **latency.percentiles, "max": latency.greatest}


def versions() -> dict[str, str]:
    """What the figures were made with."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _phases(result: RunResult, calls: Calls) -> Iterator[PhaseSummary]:
    for place, (phase, start, end) in enumerate(result.scenario.windows()):
        if end > result.seconds + 1e-6:
            return
        recovery = recovery_s(calls, normal_window(result.scenario), start, end) if place else None
        first = normal_window(result.scenario)[0] if place == 0 else start
        yield PhaseSummary(phase, figures(calls, first, end), recovery)
