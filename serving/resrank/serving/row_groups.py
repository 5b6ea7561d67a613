"""Which rows of a batch go through the engine together: few calls against little padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def group_rows(
    lengths: Sequence[int], *, call_cost: int, max_positions: int, sizes: Sequence[int] = ()
) -> list[NDArray[np.int64]]:
    """Splits rows into groups of similar length so that the engine's total time is least.

    A group of r rows padded to width w is taken to cost ``call_cost + r * w``. Sorted by length the cheapest split is
    one into consecutive runs, found exactly by dynamic programming (at most a few thousand steps for a full batch).

    Args:
        lengths: Positions of each row, without padding.
        call_cost: What a call costs however small it is (above all, reading the weights once), in positions.
        max_positions: Largest r * w, which bounds the engine's memory; a single longer row makes a group of its own.
        sizes: What r may be, ascending from 1; anything when empty.

    Returns:
        Row indices of each group, longest rows first, so that the largest buffers are made first.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    widths = np.asarray(lengths)[order]  # descending: a run's width is its first row's
    rows = len(order)
    least = np.zeros(rows + 1)  # least[i]: cost of the rows from i on
    end = np.zeros(rows, dtype=np.int64)
    for start in range(rows - 1, -1, -1):
        most = min(rows - start, max(1, max_positions // max(1, int(widths[start]))))
        possible = np.arange(1, most + 1)
        if sizes:
            possible = np.asarray([size for size in sizes if size <= most])
        costs = call_cost + possible * widths[start] + least[start + possible]
        best = int(np.argmin(costs))
        least[start], end[start] = costs[best], start + possible[best]
    groups: list[NDArray[np.int64]] = []
    start = 0
    while start < rows:
        groups.append(order[start : end[start]].astype(np.int64))
        start = int(end[start])
    return groups
