from __future__ import annotations

import pytest

from resrank.benchmarks import bounded_rounds
from resrank.benchmarks.bounded_rounds import BoundedRounds, Contender


class Clock:
    """Time that passes only when a side works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def side(self, name: str, seconds: float, **bounds: float) -> Contender:
        def call() -> None:
            self.now += seconds
            self.calls.append(name)

        return Contender(call, cost=seconds, **bounds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(bounded_rounds, "time", made)
    return made


def test_sides_take_turns_and_slow_ones_have_fewer_calls(clock: Clock) -> None:
    rounds = BoundedRounds(most_runs=4)
    found = rounds.measure({"quick": clock.side("quick", 0.5), "slow": clock.side("slow", 2.0, budget_s=5.0)})
    assert clock.calls == ["quick", "slow", "quick", "slow", "slow", "quick", "quick", "quick"]  # the first two warm up
    assert [(side.runs, side.median) for side in found.values() if side] == [(4, 500.0), (2, 2000.0)]


def test_a_call_foreseen_to_be_too_long_is_not_made(clock: Clock) -> None:
    rounds = BoundedRounds(most_runs=2)
    rounds.measure({"side": clock.side("side", 1.0, limit_s=5.0)})
    clock.calls.clear()
    assert rounds.measure({"side": clock.side("side", 6.0, limit_s=5.0)}) == {"side": None}
    assert clock.calls == []
    found = rounds.measure({"side": clock.side("side", 4.0, limit_s=5.0, budget_s=1.0)})
    assert found["side"] is not None
    assert found["side"].runs == 1
