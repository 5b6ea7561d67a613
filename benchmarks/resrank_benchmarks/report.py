"""What a run of benchmarks found, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from resrank_benchmarks.machine import Machine
from resrank_benchmarks.measurement import Measurement, Side


@dataclass(frozen=True)
class Report:
    """All figures of one run.

    Attributes:
        machine: What they belong to.
        measurements: One for each benchmark.
    """

    machine: Machine
    measurements: tuple[Measurement, ...]

    @property
    def passed(self) -> bool:
        """Whether every target is met."""
        return all(measurement.passed for measurement in self.measurements)

    def as_json(self) -> dict[str, Any]:
        """The figures as plain dictionaries, lists, numbers and text."""
        return {
            "passed": self.passed,
            "machine": asdict(self.machine),
            "benchmarks": [
                {**asdict(measurement), "ratio": measurement.ratio, "passed": measurement.passed}
                for measurement in self.measurements
            ],
        }

    def print(self, console: Console) -> None:
        """Prints the machine, one table, and what else was found.

        Args:
            console: Where.
        """
        machine = self.machine
        bf16 = "with bf16" if machine.bf16 else "without bf16"
        console.print(Text(f"{machine.cpu}, {machine.cores} cores, {bf16}, Python {machine.python}"))
        versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        console.print(Text(versions, style="dim"))
        console.print(self._table())
        for measurement in self.measurements:
            facts = ", ".join(f"{name} {_figure(value)}" for name, value in measurement.facts.items())
            console.print(Text(f"{measurement.name}: {facts}", style="dim"))

    def _table(self) -> Table:
        table = Table(box=None, header_style="bold")
        table.add_column("benchmark")
        table.add_column("side", no_wrap=True)
        for title in ("median", "p95", "range", "ratio", "target", ""):
            table.add_column(title, justify="right", no_wrap=True)
        for measurement in self.measurements:
            for cells in _rows(measurement):
                table.add_row(*cells)
        return table


def _rows(measurement: Measurement) -> Iterator[tuple[str | Text, ...]]:
    verdict = Text("✓", "green") if measurement.passed else Text("✗", "red")
    judged = (f"{measurement.ratio:.2f}", f"{measurement.bound.value} {measurement.target:.2f}", verdict)
    name = f"{measurement.name}, {measurement.unit}"
    yield (name, *_cells(measurement.measured), *judged)
    for side in (*measurement.others, measurement.baseline):
        yield ("", *_cells(side))


def _cells(side: Side) -> tuple[str, ...]:
    spread = f"{_figure(side.least)}-{_figure(side.greatest)}"
    return (side.label, _figure(side.median), _figure(side.p95), spread)


def _figure(value: float | str) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
