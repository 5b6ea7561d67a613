"""A run's figures as files: JSON and a Markdown section of each benchmark, and its plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from resrank.benchmarks.figures import figure
from resrank.benchmarks.measurement import BenchmarkError, Measurement
from resrank.benchmarks.plots import draw
from resrank.benchmarks.report import Finding, Report, judged
from resrank.benchmarks.study import Study


class Documents:
    """A folder of such files. Those of benchmarks that did not run are left alone."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder, before minutes are spent on what could then not be written.

        Raises:
            BenchmarkError: It cannot be made.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BenchmarkError(f"{folder} cannot be written: {error.strerror}") from error

    def write(self, report: Report) -> None:
        """Writes ``NAME.json``, ``NAME.md`` and ``PLOT.png`` of each benchmark.

        Raises:
            BenchmarkError: A file cannot be written.
        """
        try:
            for outcome in report.outcomes:
                one = Report(report.machine, (outcome,))
                text = json.dumps(one.as_json(), indent=2, ensure_ascii=False)
                (self.folder / f"{outcome.name}.json").write_text(f"{text}\n", encoding="utf-8")
                (self.folder / f"{outcome.name}.md").write_text(markdown(one), encoding="utf-8")
                for plot in outcome.plots if isinstance(outcome, Study) else ():
                    draw(plot, self.folder / f"{plot.name}.png")
        except OSError as error:
            raise BenchmarkError(f"{error.filename or self.folder} cannot be written: {error.strerror}") from error


def markdown(report: Report) -> str:
    """One benchmark as the section of a document: its table, its ratios, its plots, and what they were measured on."""
    lines: list[str] = []
    for outcome in report.outcomes:
        lines += _section(outcome)
    return "\n".join([*lines, f"*{report.machine.line}; {report.machine.versions_line}.*", ""])


def _section(outcome: Finding) -> Iterator[str]:
    if isinstance(outcome, Study):
        numeric = [outcome.is_numeric(number) for number in range(len(outcome.columns))]
        yield f"**{outcome.title}**"
        yield ""
        yield from _table(outcome.columns, [[figure(cell) for cell in row] for row in outcome.rows], numeric)
    if measurements := judged(outcome):
        titles = ("judged", "measured", "against", "ratio", "target", "")
        yield from _table(titles, [_cells(each) for each in measurements], [False, False, False, True, True, False])
    if isinstance(outcome, Study):
        for note in outcome.notes:
            yield note
            yield ""
    told: tuple[Finding, ...] = (outcome,) if isinstance(outcome, Measurement) else (outcome, *outcome.measurements)
    for each in told:
        if each.facts:
            facts = ", ".join(f"{name} {figure(value)}" for name, value in each.facts.items())
            yield f"{each.name}: {facts}."
            yield ""
    for plot in outcome.plots if isinstance(outcome, Study) else ():
        yield f"![{plot.title}]({plot.name}.png)"
        yield ""


def _cells(measurement: Measurement) -> list[str]:
    return [
        measurement.name,
        *(
            f"{side.label}: {figure(side.median)} ({figure(side.least)}-{figure(side.greatest)}) {measurement.unit}"
            for side in (measurement.measured, measurement.baseline)
        ),
        f"{measurement.ratio:.2f}",
        f"{measurement.bound.value} {measurement.target:.2f}",
        "✓" if measurement.passed else "✗",
    ]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> Iterator[str]:
    yield _row(titles)
    yield _row(["---:" if right else "---" for right in numeric])
    for row in rows:
        yield _row(row)
    yield ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
