"""Draws a study's plots as PNG images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from resrank.benchmarks.study import Plot, PlotKind, Series

_INCHES = (8.0, 4.4)  # with the dots below, as wide as a document shows an image without shrinking it
_DOTS_PER_INCH = 110
_MOST_TICKS = 9


def draw(plot: Plot, out: Path) -> None:
    """Draws one plot.

    Args:
        plot: What to draw.
        out: The PNG to write.

    Raises:
        OSError: It cannot be written.
    """
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        # Not through pyplot, whose figures are global and choose a window system.
        figure = Figure(figsize=_INCHES, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        if plot.kind is PlotKind.STACKED_BARS:
            _draw_bars(axes, plot)
        elif plot.kind is PlotKind.POINTS:
            _draw_points(axes, plot)
        else:
            _draw_lines(axes, plot)
        axes.set_title(plot.title, loc="left", fontsize="medium")
        aside = out.with_suffix(".partial")
        figure.savefig(aside, dpi=_DOTS_PER_INCH, format="png")
    aside.replace(out)


def _draw_lines(axes: Axes, plot: Plot) -> None:
    for colour, series in enumerate(plot.series):
        axes.plot(cast(Any, series.x), series.y, color=f"C{colour}", marker=_marker(series), label=series.label)
        if series.low and series.high:
            axes.fill_between(cast(Any, series.x), series.low, series.high, color=f"C{colour}", alpha=0.2, linewidth=0)
    _finish(axes, plot)
    if not plot.log_y:
        axes.set_ylim(bottom=0)


def _draw_points(axes: Axes, plot: Plot) -> None:
    """Points with their spread upright; where they lie decides the axes, which need not start at 0."""
    for colour, series in enumerate(plot.series):
        spread = None
        if series.low and series.high:
            below = [y - low for y, low in zip(series.y, series.low, strict=True)]
            above = [high - y for y, high in zip(series.y, series.high, strict=True)]
            spread = [below, above]
        axes.errorbar(
            cast(Any, series.x), series.y, yerr=spread, fmt="o", capsize=3, color=f"C{colour % 10}", label=series.label
        )
    _finish(axes, plot)


def _finish(axes: Axes, plot: Plot) -> None:
    """What lines and points have in common: titles of the axes, their scales, the legend."""
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(alpha=0.3)
    if plot.log_x:
        _scale(axes, "x", plot)
    if plot.log_y:
        _scale(axes, "y", plot)
    if len(plot.series) > 1:
        axes.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_bars(axes: Axes, plot: Plot) -> None:
    """Bars lie, so that long names of bars can be read."""
    names = plot.series[0].x
    left = [0.0] * len(names)
    for colour, series in enumerate(plot.series):
        axes.barh(range(len(names)), series.y, left=left, color=f"C{colour % 10}", height=0.6, label=series.label)
        left = [start + width for start, width in zip(left, series.y, strict=True)]
    axes.set_yticks(range(len(names)), [str(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel(plot.y_label)
    axes.set_ylabel(plot.x_label)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _scale(axes: Axes, which: str, plot: Plot) -> None:
    """A logarithmic axis with plain numbers, on x those that lines were measured at."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    measured = sorted({x for series in plot.series for x in series.x if not isinstance(x, str)})
    if which == "x" and plot.kind is PlotKind.LINES and len(measured) <= _MOST_TICKS:
        axes.set_xticks(measured)
    else:
        axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter(NullFormatter())


def _marker(series: Series) -> str:
    """Few points are marked, many would run together."""
    return "o" if len(series.x) <= 3 * _MOST_TICKS else ""
