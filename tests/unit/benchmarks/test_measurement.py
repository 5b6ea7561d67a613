from __future__ import annotations

import pytest

from resrank.benchmarks.interleaving import interleave
from resrank.benchmarks.measurement import Bound, Measurement, Side


def test_a_side_summarises_its_samples() -> None:
    side = Side.of("ours", [float(sample) for sample in range(100, -1, -1)])
    assert side == Side("ours", median=50.0, p95=95.0, least=0.0, greatest=100.0, runs=101)


@pytest.mark.parametrize(
    ("bound", "measured", "passed"),
    [
        (Bound.AT_MOST, 11.0, True),
        (Bound.AT_MOST, 12.5, True),
        (Bound.AT_MOST, 12.6, False),
        (Bound.AT_LEAST, 12.4, False),
        (Bound.AT_LEAST, 12.5, True),
        (Bound.AT_LEAST, 14.0, True),
        (Bound.AT_MOST, float("nan"), False),
        (Bound.AT_LEAST, float("nan"), False),
    ],
)
def test_the_ratio_of_medians_is_judged_by_its_bound(bound: Bound, measured: float, passed: bool) -> None:
    ours, baseline = Side.of("ours", [measured]), Side.of("baseline", [2.0, 10.0, 90.0])
    measurement = Measurement("name", "ms", ours, baseline, bound, target=1.25)
    assert measurement.passed is passed


def test_sides_are_called_in_turn_another_one_first_each_round() -> None:
    calls: list[tuple[str, int]] = []
    spent = interleave(
        {name: lambda number, name=name: calls.append((name, number)) for name in "abc"}, runs=3, warm_up=1
    )
    assert ["".join(name for name, number in calls if number == round_) for round_ in range(4)] == [
        "abc",
        "bca",
        "cab",
        "abc",
    ]
    assert {name: len(times) for name, times in spent.items()} == {"a": 3, "b": 3, "c": 3}
