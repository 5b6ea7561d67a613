"""Whether something grows: the slope of figures over time, which single spikes do not move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The median of the slopes between all pairs of points (Theil and Sen).

    Up to 29 % of the points may be arbitrarily wrong without moving it far.

    Args:
        times: At least two different ones.
        values: One each.

    Returns:
        Units of ``values`` per unit of ``times``.

    Raises:
        ValueError: No two points have different times.
    """
    x, y = np.asarray(times, np.float64), np.asarray(values, np.float64)
    earlier, later = np.triu_indices(len(x), k=1)
    apart = x[later] - x[earlier]
    if not apart.any():
        raise ValueError("a slope needs points at two different times")
    used = apart != 0
    return float(np.median((y[later] - y[earlier])[used] / apart[used]))
