"""What a load test says while it runs and when it is over."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from resrank.core.terminal import FullWidth
from resrank.loadtest.figures import figures
from resrank.loadtest.kinds import OUTCOMES
from resrank.loadtest.recording import Calls
from resrank.loadtest.report import figure
from resrank.loadtest.saturation import Probe, Saturation, Search
from resrank.loadtest.summary import Summary


def print_summary(summary: Summary, console: Console) -> None:
    """Prints calls, objectives and what else a reader must know."""
    total, result = summary.total, summary.result
    console.print(
        f"{result.scenario.name}: {figure(total.offered)} calls/s offered, {figure(total.goodput)}/s ended well, "
        f"{figure(total.calls)} calls in {figure(total.end - total.start)} s"
    )
    shown = [outcome for outcome in OUTCOMES if total.outcomes[outcome] or outcome == "ok"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("call")
    for name in (*(outcome.value for outcome in shown), "p50 ms", "p95 ms", "p99 ms", "max ms"):
        table.add_column(name, justify="right")
    for kind, counts in total.outcomes_by_kind.items():
        latency = total.latency.get(kind)
        names = ("p50", "p95", "p99")
        times = [*map(latency.percentiles.get, names), latency.greatest] if latency else [None] * 4
        table.add_row(kind.value, *(str(counts[outcome]) for outcome in shown), *map(figure, times))
    console.print(FullWidth(table), crop=False)
    for phase in summary.phases if len(summary.phases) > 1 else ():
        found, level = phase.figures, figure(phase.phase.level)
        shed = f", shed within {figure(found.time_to_shed.percentiles['p95'])} ms (p95)" if found.time_to_shed else ""
        back = f", felt for {figure(phase.recovery_s)} s" if phase.recovery_s else ""
        console.print(f"  {phase.phase.name} ({level}): {figure(found.goodput)}/s ended well{shed}{back}", style="dim")
    for verdict in summary.verdicts:
        mark = Text("✓ ", "green") if verdict.kept else Text("✗ ", "red")
        value = f"{figure(verdict.found)} {verdict.unit}" if verdict.found is not None else "nothing to judge"
        told = f"{verdict.window}: {verdict.what} {value}".strip()
        console.print(mark + f"{told} ({verdict.bound.value} {figure(verdict.limit)})")
    for problem in (*result.problems, result.metrics.problem):
        if problem:
            console.print(Text(f"! {problem}", "red"), soft_wrap=True)
    if held := result.recording.held_back:
        console.print(Text(f"! {held} calls waited in the load generator: max_in_flight was reached", "yellow"))


def print_probe(probe: Probe, console: Console) -> None:
    """Prints one line of a search."""
    total = probe.summary.total
    missed = ", ".join(f"{v.what} {figure(v.found)} {v.unit}".strip() for v in probe.summary.verdicts if not v.kept)
    mark = Text("✓ ", "green") if probe.summary.kept else Text("✗ ", "red")
    problems = "; ".join(probe.summary.result.problems)
    console.print(
        mark
        + f"{figure(probe.rate)} calls/s: {figure(total.goodput)}/s ended well of {total.calls} calls"
        + (f"; missed: {missed or problems}" if not probe.summary.kept else "")
    )


def print_saturation(found: Saturation, search: Search, console: Console) -> None:
    """Prints what a search found."""
    if found.rate is None:
        console.print(f"even {figure(search.low)} calls/s miss the objectives: search lower, or ask for less")
    elif found.missed is None:
        console.print(f"saturation: above {figure(found.rate)} calls/s, where the search ends")
    else:
        console.print(
            f"saturation: {figure(found.rate)} calls/s keep the objectives, {figure(found.missed)} miss them",
            style="bold",
        )


def print_progress(calls: Calls, elapsed: float, seconds: float, console: Console) -> None:
    """Prints one line about the last seconds.

    Args:
        calls: The latest, by start.
        elapsed: Seconds since the start.
        seconds: How far back to look.
        console: Where.
    """
    found = figures(calls, max(0.0, elapsed - seconds), max(elapsed, 1e-3))
    outcomes = ", ".join(f"{outcome.value} {count}" for outcome, count in found.outcomes.items() if count)
    p95 = ", ".join(
        f"{kind.value} p95 {figure(latency.percentiles['p95'])} ms" for kind, latency in found.latency.items()
    )
    parts = [f"{elapsed:5.0f} s", f"{figure(found.goodput)}/s ended well", outcomes, p95]
    console.print(" · ".join(filter(None, parts)), style="dim", soft_wrap=True)
