"""A run as pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resrank.core.names import Model
from resrank.core.outcomes import Outcome
from resrank.loadtest.figures import starting
from resrank.loadtest.kinds import KINDS, OUTCOMES, CallKind
from resrank.loadtest.scenario import OpenLoad
from resrank.loadtest.server_metrics import Interval, engines_first
from resrank.loadtest.summary import Summary
from resrank.loadtest.timeline import Timeline

_WIDTH = 11.0
_DOTS_PER_INCH = 100
_OUTCOME_COLOURS = {
    Outcome.OK: "#2e8b57",
    Outcome.SHED: "#e69f00",
    Outcome.DEADLINE: "#c0392b",
    Outcome.INVALID: "#8e44ad",
    Outcome.UNAVAILABLE: "#555555",
    Outcome.FAILED: "#000000",
}
_PERCENTILE_COLOURS = {"p50": "#1f77b4", "p95": "#ff7f0e", "p99": "#d62728"}
_ENSEMBLES = frozenset({Model.EMBED_PASSAGE, Model.EMBED_QUERY, Model.RERANK, Model.RERANK_EMBEDDED})
"""Not drawn: their times are those of their steps, added up."""
_DISTRIBUTION_POINTS = 400
_TICKS = (50, 90, 99, 99.9, 99.99)


def draw_timeline(summary: Summary, timeline: Timeline) -> bytes:
    """Latency of each kind, calls by outcome, and the server's queues and work, over the same seconds; a PNG."""
    intervals = summary.result.metrics.intervals()
    kinds = timeline.kinds
    panels = [*("latency" for _ in kinds), "calls", *(["queue", "compute"] if intervals else [])]
    figure = Figure(figsize=(_WIDTH, 2.3 * len(panels) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
    for axis, kind in zip(axes, kinds, strict=False):
        _draw_latency(axis, summary, timeline, kind)
    _draw_calls(axes[len(kinds)], summary, timeline)
    if intervals:
        steps = [model for model in engines_first(list(intervals)) if model not in _ENSEMBLES]
        colours = {model: f"C{place % 10}" for place, model in enumerate(steps)}
        _draw_models(axes[-2], intervals, colours, "queue_ms", "server: wait in queue", legend=True)
        _draw_models(axes[-1], intervals, colours, "compute_ms", "server: work on a request", legend=False)
    for axis in axes:
        axis.grid(alpha=0.3)
        _draw_phases(axis, summary, named=axis is axes[0])
    axes[-1].set_xlim(0, max(timeline.steps[-1].end, 1))
    axes[-1].set_xlabel("seconds from the start")
    return _png(figure)


def draw_distribution(summary: Summary) -> bytes:
    """Latency at each percentile, of the calls that ended well after the warm-up; a PNG."""
    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis, furthest = figure.subplots(), 1.0
    calls = starting(summary.calls, summary.total.start, summary.total.end)
    for place, kind in enumerate(KINDS):
        good = calls["latency"][(calls["kind"] == place) & (calls["outcome"] == OUTCOMES.index(Outcome.OK))]
        if len(good):
            # Nines: 0 at the minimum, 1 at p90, 2 at p99, as far as there are calls for them.
            nines = np.linspace(0, np.log10(len(good)), _DISTRIBUTION_POINTS)
            latency = np.percentile(good, 100 * (1 - 10**-nines), method="inverted_cdf") * 1e3
            axis.plot(nines, latency, color=f"C{place}", label=f"{kind} ({len(good)} calls)")
            furthest = max(furthest, nines[-1])
    axis.set_xticks([-np.log10(1 - tick / 100) for tick in _TICKS], [f"p{tick:g}" for tick in _TICKS])
    axis.set_xlim(0, furthest)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("latency, ms")
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small", loc="upper left")
    return _png(figure)


def _draw_latency(axis: Axes, summary: Summary, timeline: Timeline, kind: CallKind) -> None:
    middles = [(step.start + step.end) / 2 for step in timeline.steps]
    for name, colour in _PERCENTILE_COLOURS.items():
        values = [step.latency[kind].percentiles[name] if kind in step.latency else np.nan for step in timeline.steps]
        axis.plot(middles, values, color=colour, label=name, marker=".", markersize=3, linewidth=1.2)
    for name, bound in summary.result.scenario.slo.latency_ms.of(kind).bounds().items():
        axis.axhline(bound, color=_PERCENTILE_COLOURS.get(name, "black"), linestyle="--", linewidth=0.9)
    axis.set_ylabel(f"{kind}\nlatency, ms")
    axis.set_ylim(bottom=0)
    _legend_aside(axis)


def _draw_calls(axis: Axes, summary: Summary, timeline: Timeline) -> None:
    middles = np.array([(step.start + step.end) / 2 for step in timeline.steps])
    shown = [outcome for outcome in OUTCOMES if timeline.ended[outcome].any()]
    if shown:
        axis.stackplot(
            middles,
            [timeline.ended[outcome] for outcome in shown],
            colors=[_OUTCOME_COLOURS[outcome] for outcome in shown],
            labels=[outcome.value for outcome in shown],
            alpha=0.75,
            step="mid",
        )
    scenario = summary.result.scenario
    if isinstance(scenario.load, OpenLoad):
        axis.plot(
            middles, [scenario.profile.at(at) for at in middles], "k--", linewidth=1, label="rate of the scenario"
        )
    axis.plot(middles, timeline.in_flight, color="#1f4e9c", linewidth=1, label="in flight")
    axis.set_ylabel("calls ended per s,\nin flight")
    axis.set_ylim(bottom=0)
    _legend_aside(axis)


def _draw_models(
    axis: Axes, intervals: dict[str, list[Interval]], colours: dict[str, str], field: str, label: str, *, legend: bool
) -> None:
    for model, colour in colours.items():
        points: Sequence[float | None] = [getattr(interval, field) for interval in intervals[model]]
        values = [np.nan if value is None else value for value in points]
        axis.plot(
            [interval.end for interval in intervals[model]],
            values,
            color=colour,
            label=model,
            marker=".",
            markersize=3,
            linewidth=1.2,
        )
    axis.set_ylabel(f"{label},\nms per request")
    axis.set_ylim(bottom=0)
    if legend:
        _legend_aside(axis)


def _legend_aside(axis: Axes) -> None:
    """Beside the panel, where it hides nothing."""
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.005, 1), borderaxespad=0, frameon=False)


def _draw_phases(axis: Axes, summary: Summary, *, named: bool) -> None:
    scenario = summary.result.scenario
    if scenario.warmup_s:
        axis.axvspan(0, scenario.warmup_s, color="grey", alpha=0.12, linewidth=0)
    for phase, start, end in scenario.windows():
        if start:
            axis.axvline(start, color="black", linewidth=0.8, linestyle=":")
        if named and len(scenario.load.phases) > 1 and start < summary.result.seconds:
            unit = "/s" if isinstance(scenario.load, OpenLoad) else " users"
            text = f"{phase.name} ({phase.level:g}{unit})"
            axis.annotate(
                text,
                ((start + min(end, summary.result.seconds)) / 2, 1.02),
                xycoords=("data", "axes fraction"),
                ha="center",
                fontsize="small",
            )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=_DOTS_PER_INCH, format="png")
    return buffer.getvalue()
