"""The curves of a run as one image, drawn from its log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resrank.training.logs import DEVELOPMENT, TRAINING, Record, read_log

_LOSSES = {"loss": "sum", "ranking": "L_rank", "contrastive": "L_enc"}
_ORDERS = {"retrieved": "retrieved order", "shuffled": "shuffled", "dense": "dense, encoder as it stands"}
_INCHES = (10.0, 9.0)
_DOTS_PER_INCH = 110


def draw_curves(log: Path, out: Path) -> None:
    """Draws losses by stage, the development score in both orders beside dense retrieval, and the gate.

    Args:
        log: ``log.jsonl`` of a run.
        out: The PNG to write.

    Raises:
        TrainingError: The log is damaged.
        OSError: The image cannot be written.
    """
    records = list(read_log(log))
    training = [record for record in records if record["kind"] == TRAINING]
    development = [record for record in records if record["kind"] == DEVELOPMENT]
    # Not through pyplot, whose figures are global and choose a window system.
    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores, gate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1))
    _draw_losses(losses, training)
    _draw_scores(scores, development)
    gate.plot([record["total_step"] for record in training], [record["gate"] for record in training], color="C4")
    gate.set_ylabel("gate g")
    gate.set_xlabel("step")
    for axes in (losses, scores, gate):
        axes.grid(alpha=0.3)
        for boundary in _boundaries(records):
            axes.axvline(boundary, color="black", linewidth=0.8, linestyle=":")
    aside = out.with_suffix(".partial")
    figure.savefig(aside, dpi=_DOTS_PER_INCH, format="png")
    aside.replace(out)


def _draw_losses(axes: Axes, training: Sequence[Record]) -> None:
    for stage in dict.fromkeys(record["stage"] for record in training):
        of_stage = [record for record in training if record["stage"] == stage]
        for colour, (name, label) in enumerate(_LOSSES.items()):
            points = [(record["total_step"], record[name]) for record in of_stage if name in record]
            if points:
                style = "-" if name == "loss" else "--"
                axes.plot(*zip(*points, strict=True), style, color=f"C{colour}", label=f"{stage}: {label}")
    axes.set_ylabel("loss")
    if training:
        axes.legend(fontsize="small")


def _draw_scores(axes: Axes, development: Sequence[Record]) -> None:
    steps = [record["total_step"] for record in development]
    for colour, (name, label) in enumerate(_ORDERS.items()):
        style = ":" if name == "dense" else "-"
        axes.plot(steps, [record[name] for record in development], style, color=f"C{colour}", marker=".", label=label)
    if development:
        axes.axhline(development[0]["dense"], color="black", linewidth=0.8, label="dense-start")
        axes.legend(fontsize="small")
    axes.set_ylabel("development nDCG@10")


def _boundaries(records: Sequence[Record]) -> list[int]:
    """The last step of every stage but the last."""
    ends = {record["stage"]: record["total_step"] for record in records}
    return sorted(ends.values())[:-1]
