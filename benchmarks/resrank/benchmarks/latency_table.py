"""The table and the plot that both comparisons with rerankers of text have."""

from __future__ import annotations

from collections.abc import Mapping

from resrank.benchmarks.figures import figure
from resrank.benchmarks.measurement import Side
from resrank.benchmarks.rerankers import Rerankers
from resrank.benchmarks.study import Plot, Series
from resrank.benchmarks.text_models import PAIR_TOKENS

SPREAD = "median (least-greatest, calls)"
"""What a cell says."""

Found = Mapping[int, Mapping[str, Side | None]]
"""Size to side to milliseconds."""


def latency_columns(size: str, found: Found) -> tuple[str, ...]:
    """Titles: the size, then each side."""
    return (size, *_sides(found))


def latency_rows(found: Found) -> tuple[tuple[str | float | None, ...], ...]:
    """One row a size, in each cell a median and its spread."""
    return tuple((size, *(_cell(sides[label]) for label in _sides(found))) for size, sides in found.items())


def latency_plot(name: str, title: str, x_label: str, found: Found) -> Plot:
    """Medians and ranges of all sides on logarithmic axes."""
    series = []
    for label in _sides(found):
        points = [(size, side) for size, sides in found.items() if (side := sides[label]) is not None]
        if points:
            series.append(
                Series(
                    label,
                    tuple(size for size, _ in points),
                    tuple(side.median for _, side in points),
                    tuple(side.least for _, side in points),
                    tuple(side.greatest for _, side in points),
                )
            )
    return Plot(name, title, x_label, "ms", tuple(series), log_x=True, log_y=True)


def text_notes(sides: Rerankers, tokens: int) -> tuple[str, ...]:
    """What has to be known of the sides."""
    return (
        "The cross-encoder has the architecture of the public MiniLM-L6 ones (6 layers of width 384) and random "
        f"weights, in torch fp32: speed does not depend on weights. It reads at most {PAIR_TOKENS} tokens of a pair.",
        _listwise_note(sides, tokens),
        "– : a call foreseen to take longer than the benchmark's bound was not made. Slow sides have fewer calls.",
    )


def _listwise_note(sides: Rerankers, tokens: int) -> str:
    if sides.reader is None:
        return (
            "There is no text-listwise side, one pass over the text of all passages: it is made of the reranker's "
            "backbone, and this checkpoint's reads slots alone."
        )
    room = sides.reader.max_positions // tokens
    return (
        "The text-listwise side is one pass of the reranker's backbone over query and passages in torch fp32, without "
        f"generating the ranking. Its context of {sides.reader.max_positions} tokens ends at {room} passages of "
        f"{tokens} tokens; beyond, only its time means something."
    )


def _sides(found: Found) -> tuple[str, ...]:
    """Those that were measured, in their order; the same at every size."""
    return tuple(next(iter(found.values())))


def _cell(side: Side | None) -> str | None:
    if side is None:
        return None
    return f"{figure(side.median)} ({figure(side.least)}-{figure(side.greatest)}, {side.runs})"
