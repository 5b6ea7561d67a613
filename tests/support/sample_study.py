"""A study with everything a study can have."""

from __future__ import annotations

from resrank.benchmarks.measurement import Bound, Measurement, Side
from resrank.benchmarks.study import Plot, PlotKind, Series, Study


def sample_study(ratio: float = 2.0) -> Study:
    """Two rows, one of them incomplete; one judged ratio; one plot of each kind."""
    return Study(
        name="sample",
        title="Latency by size",
        columns=("side", "candidates", "median, ms"),
        rows=(("ours | here", 10, 1.25), ("theirs", 1000, None)),
        measurements=(
            Measurement(
                name="sample, 10 candidates",
                unit="ms",
                measured=Side.of("ours", [ratio]),
                baseline=Side.of("theirs", [1.0, 1.0]),
                bound=Bound.AT_MOST,
                target=2.0,
                facts={"threads": 2},
            ),
        ),
        plots=(
            Plot(
                name="sample-latency",
                title="Latency",
                x_label="candidates",
                y_label="ms",
                series=(
                    Series("ours", (10, 100), (1.0, 2.0), (0.5, 1.5), (1.5, 2.5)),
                    Series("theirs", (10, 100), (5.0, 50.0)),
                ),
                log_x=True,
                log_y=True,
            ),
            Plot(
                name="sample-parts",
                title="Parts",
                x_label="request",
                y_label="ms",
                series=(
                    Series("queue", ("rerank", "search"), (1.0, 2.0)),
                    Series("compute", ("rerank", "search"), (9.0, 8.0)),
                ),
                kind=PlotKind.STACKED_BARS,
            ),
            Plot(
                name="sample-quality",
                title="Quality",
                x_label="ms",
                y_label="nDCG@10",
                series=(
                    Series("ours", (12.5,), (0.41,), (0.36,), (0.45,)),
                    Series("theirs", (1600.0,), (0.43,)),
                ),
                kind=PlotKind.POINTS,
                log_x=True,
            ),
        ),
        notes=("The second side takes no more than 512.",),
        facts={"dimension": 384},
    )
