"""What a run of benchmarks found, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from resrank.benchmarks.figures import figure
from resrank.benchmarks.measurement import Measurement, Side
from resrank.benchmarks.study import Study
from resrank.core.terminal import FullWidth
from resrank.stack.machine import Machine

Finding = Measurement | Study
"""What a benchmark gives back."""


@dataclass(frozen=True)
class Report:
    """All figures of one run.

    Attributes:
        machine: What they belong to.
        outcomes: One for each benchmark.
    """

    machine: Machine
    outcomes: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every target is met."""
        return all(outcome.passed for outcome in self.outcomes)

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """All ratios that are judged."""
        return tuple(measurement for outcome in self.outcomes for measurement in judged(outcome))

    def as_json(self) -> dict[str, Any]:
        """The figures as plain dictionaries, lists, numbers and text."""
        return {
            "passed": self.passed,
            "machine": asdict(self.machine),
            "benchmarks": [_as_json(outcome) for outcome in self.outcomes],
        }

    def print(self, console: Console) -> None:
        """Prints the machine, a table of each study, one of all ratios, and what else was found."""
        console.print(Text(self.machine.line))
        console.print(Text(self.machine.versions_line, style="dim"))
        for outcome in self.outcomes:
            if isinstance(outcome, Study):
                _print_study(outcome, console)
        if self.measurements:
            console.print(FullWidth(self._table()), crop=False)
        for measurement in self.measurements:
            _print_facts(measurement, console)

    def _table(self) -> Table:
        table = Table(box=None, header_style="bold")
        table.add_column("benchmark", min_width=10)
        table.add_column("side")
        for title in ("median", "p95", "range", "ratio", "target", ""):
            table.add_column(title, justify="right", no_wrap=True)
        for measurement in self.measurements:
            for cells in _rows(measurement):
                table.add_row(*cells)
        return table


def judged(outcome: Finding) -> tuple[Measurement, ...]:
    """An outcome's ratios that have a target."""
    return (outcome,) if isinstance(outcome, Measurement) else outcome.measurements


def _as_json(outcome: Finding) -> dict[str, Any]:
    if isinstance(outcome, Measurement):
        return {**asdict(outcome), "ratio": outcome.ratio, "passed": outcome.passed}
    measurements = [_as_json(measurement) for measurement in outcome.measurements]
    return {**asdict(outcome), "measurements": measurements, "passed": outcome.passed}


def _print_study(study: Study, console: Console) -> None:
    table = Table(title=f"{study.name}: {study.title}", title_justify="left", box=None, header_style="bold")
    for number, title in enumerate(study.columns):
        table.add_column(title, justify="right" if study.is_numeric(number) else "left")
    for row in study.rows:
        table.add_row(*(figure(cell) for cell in row))
    console.print(FullWidth(table), crop=False)
    for note in study.notes:
        console.print(Text(note, style="dim"))
    _print_facts(study, console)
    console.print()


def _print_facts(outcome: Finding, console: Console) -> None:
    if outcome.facts:
        facts = ", ".join(f"{name} {figure(value)}" for name, value in outcome.facts.items())
        console.print(Text(f"{outcome.name}: {facts}", style="dim"))


def _rows(measurement: Measurement) -> Iterator[tuple[str | Text, ...]]:
    verdict = Text("✓", "green") if measurement.passed else Text("✗", "red")
    ratio = (f"{measurement.ratio:.2f}", f"{measurement.bound.value} {measurement.target:.2f}", verdict)
    name = f"{measurement.name}, {measurement.unit}"
    yield (name, *_cells(measurement.measured), *ratio)
    for side in (*measurement.others, measurement.baseline):
        yield ("", *_cells(side))


def _cells(side: Side) -> tuple[str, ...]:
    return (side.label, figure(side.median), figure(side.p95), f"{figure(side.least)}-{figure(side.greatest)}")
