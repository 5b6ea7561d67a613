"""What a benchmark of more than one ratio gives back: a table, what is drawn of it, and the ratios that are judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from resrank.benchmarks.measurement import Measurement


class PlotKind(StrEnum):
    """How a plot's series are drawn."""

    LINES = "lines"
    STACKED_BARS = "stacked bars"
    POINTS = "points"


@dataclass(frozen=True)
class Series:
    """One line of a plot, one layer of stacked bars, or points of one colour.

    Attributes:
        label: Stands in the legend.
        x: Where; numbers for lines and points, names for bars.
        y: The figures, in the plot's unit.
        low: Lower end of the spread around each figure; empty where none was measured.
        high: Upper end of it.
    """

    label: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plot:
    """One picture.

    Attributes:
        name: Of its file, without the ending.
        title: Above it.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
        series: What is drawn.
        kind: How.
        log_x: Whether x is drawn on a logarithmic axis.
        log_y: Whether y is.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    kind: PlotKind = PlotKind.LINES
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Study:
    """One benchmark's outcome.

    Attributes:
        name: Of the benchmark.
        title: What was measured, in a line.
        columns: Titles of the table, each with its unit.
        rows: Cells of the table; None where nothing could be measured, which ``notes`` explain.
        measurements: The ratios that have a target.
        plots: Pictures of the table.
        notes: Sentences that belong below the table.
        facts: Further figures, each named with its unit.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]
    measurements: tuple[Measurement, ...] = ()
    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every target is met."""
        return all(measurement.passed for measurement in self.measurements)

    def is_numeric(self, column: int) -> bool:
        """Whether a column of the table has numbers only, or nothing."""
        return all(not isinstance(row[column], str) for row in self.rows)
