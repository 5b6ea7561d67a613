"""The overload study judges goodput, the time to be shed and the recovery, each by its own requests."""

from __future__ import annotations

import pytest

from resrank.benchmarks import overload
from resrank.benchmarks.load import Load
from resrank.benchmarks.measurement import BenchmarkError
from resrank.core.outcomes import Outcome
from resrank.loadtest.kinds import CallKind
from resrank.loadtest.recording import Recording


def load(*, shed_ms: float = 20.0, late_s: float = 0.0, every_s: float = 0.1) -> Load:
    """10 s of calm, 10 s of burst with ten answers a second and as many sheds, 10 s of calm."""
    requests = [(Outcome.OK, float(due), 0.2) for due in range(10)]
    for number in range(int(10 / every_s)):
        due = 10 + number * every_s
        requests += [(Outcome.OK, due, 0.01), (Outcome.SHED, due, shed_ms / 1e3)]
    requests += [(Outcome.OK, 20.0 + due, 1.0 if due < late_s else 0.2) for due in range(10)]
    return load_of(requests)


def load_of(requests: list[tuple[Outcome, float, float]]) -> Load:
    """A load of 30 s; each request by its outcome, when it was due, and its seconds."""
    recording = Recording()
    for outcome, due, seconds in requests:
        recording.add(CallKind.RERANK, outcome, start=due, sent=due, end=due + seconds)
    return Load(recording.calls(), 30.0, 1.0)


def test_a_server_that_sheds_well_passes() -> None:
    study = overload._study([10.0, 10.0], load(), 10.0, 10.0)
    goodput, shed, recovery = study.measurements
    assert goodput.ratio == pytest.approx(1.0, rel=0.06)
    assert shed.measured.median == pytest.approx(20.0)
    assert recovery.measured.median == 0.0
    assert study.passed
    assert [row[0] for row in study.rows] == ["before", "burst", "after"]
    assert study.rows[1][5] == 100
    assert study.rows[0][6] is None  # nothing was shed, so there is no percentile


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        (load(every_s=0.2), "goodput in the burst"),
        (load(shed_ms=60.0), "time to be shed"),
        (load(late_s=7.0), "recovery after the burst"),
    ],
)
def test_each_target_fails_by_itself(changed: Load, failed: str) -> None:
    study = overload._study([10.0, 10.0], changed, 10.0, 10.0)
    assert [measurement.name for measurement in study.measurements if not measurement.passed] == [failed]


def test_a_burst_that_sheds_nothing_proves_nothing() -> None:
    calm = load_of([(Outcome.OK, due / 10, 0.2) for due in range(300)])
    with pytest.raises(BenchmarkError, match="without anything shed"):
        overload._study([10.0], calm, 10.0, 10.0)


def test_batches_are_counted_whole() -> None:
    batches = [time for batch in range(1, 11) for time in [4.0 * batch] * 8]  # 8 answers every 4 s
    assert overload.rates(batches, [5.0, 10.0, 15.0, 23.0, 39.0]) == [2.0] * 4
    assert overload.rates(batches, [4.0, 5.0]) == []
