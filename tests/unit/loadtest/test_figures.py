"""Figures are those of all calls, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from resrank.core.errors import (
    CollectionNotFoundError,
    DeadlineExceededError,
    EncoderMismatchError,
    InvalidInputError,
    ModelNotReadyError,
    QueueFullError,
    QuotaExceededError,
    ResRankError,
    RetrievalError,
    ServerUnavailableError,
)
from resrank.core.outcomes import Outcome, outcome_of
from resrank.loadtest.figures import Latency, figures, recovery_s
from resrank.loadtest.kinds import CallKind
from resrank.loadtest.recording import CALL, Recording
from resrank.loadtest.timeline import timeline

from .conftest import add, record


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (QueueFullError("full"), Outcome.SHED),
        (DeadlineExceededError("late"), Outcome.DEADLINE),
        (InvalidInputError("QUERY", "empty"), Outcome.INVALID),
        (ServerUnavailableError("gone"), Outcome.UNAVAILABLE),
        (ModelNotReadyError("loading"), Outcome.UNAVAILABLE),
        (RetrievalError("broken"), Outcome.FAILED),
        (EncoderMismatchError("of another"), Outcome.FAILED),
        (CollectionNotFoundError("mistyped"), Outcome.INVALID),
        (QuotaExceededError("full"), Outcome.INVALID),
        (ResRankError("broken"), Outcome.FAILED),
        (KeyError("a bug"), Outcome.FAILED),
    ],
)
def test_each_error_is_an_outcome(error: Exception, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


def test_a_subclass_has_the_outcome_of_its_base() -> None:
    class EmptyQueryError(InvalidInputError):
        pass

    assert outcome_of(EmptyQueryError("QUERY", "empty")) is Outcome.INVALID


def test_a_percentile_is_the_latency_of_a_call() -> None:
    latency = Latency.of(np.arange(1, 101, dtype=np.float32) / 1000)
    assert latency is not None
    assert latency.percentiles == pytest.approx({"p50": 50, "p90": 90, "p95": 95, "p99": 99, "p999": 100})
    assert (latency.calls, latency.mean, latency.greatest) == pytest.approx((100, 50.5, 100))
    assert Latency.of(np.array([], np.float32)) is None


def test_a_window_has_the_calls_that_should_start_in_it_and_the_goodput_that_ends_in_it() -> None:
    recording = record((0.5, 0.1), (1.0, 0.1), (1.5, 2.0), (2.9, 0.05), (3.0, 0.1))
    add(recording, [(1.2, 0.02), (1.3, 0.04)], outcome=Outcome.SHED)
    add(recording, [(2.0, 0.3)], kind=CallKind.EMBED)
    found = figures(recording.calls(), 1.0, 3.0)
    assert (found.calls, found.offered) == (6, 3.0)
    assert found.outcomes[Outcome.OK] == 4
    assert found.outcomes[Outcome.SHED] == 2
    assert found.outcomes_by_kind[CallKind.EMBED][Outcome.OK] == 1
    assert found.non_ok_share == pytest.approx(2 / 6)
    assert found.goodput == 3 / 2  # those that end at 1.1, 2.3 and 2.95; 3.5 is outside
    assert found.latency[CallKind.RERANK].calls == 3
    assert found.latency[CallKind.RERANK].greatest == pytest.approx(2000)
    assert found.time_to_shed is not None
    assert found.time_to_shed.percentiles["p95"] == pytest.approx(40)


def test_recovery_is_where_three_normal_seconds_begin() -> None:
    steady = [(at / 10, 0.1) for at in range(100)]
    slow = [(10 + at / 10, 2.0) for at in range(32)]
    fine = [(13.2 + at / 10, 0.1) for at in range(68)]
    calls = record(*steady, *slow, *fine).calls()
    assert recovery_s(calls, (0, 10), 10, 20) == 3.0  # at 13 two of ten are slow: the median is normal
    assert recovery_s(record(*steady, *fine).calls(), (0, 10), 13.2, 20) == 0.0
    assert recovery_s(record(*steady, *[(at, 2.0) for at in range(10, 20)]).calls(), (0, 10), 10, 20) is None
    assert recovery_s(record(*steady).calls(), (0, 10), 10, 20) is None


def test_seconds_in_which_all_users_wait_are_not_normal() -> None:
    steady = [(at / 10, 0.1) for at in range(100)]
    stuck, fine = [(10.0, 5.5)] * 4, [(15.6 + at / 10, 0.1) for at in range(43)]
    assert recovery_s(record(*steady, *stuck, *fine).calls(), (0, 10), 10, 20) == 5.0
    # Nobody calls: nobody waits either.
    assert recovery_s(record(*steady, (10.0, 0.1), (19.0, 0.1)).calls(), (0, 10), 10, 20) == 0.0


def test_seconds_in_which_calls_fail_are_not_normal_and_a_later_one_is_no_relapse() -> None:
    recording = record(*[(at / 10, 0.1) for at in range(200)])
    add(recording, [(10.5, 0.01), (12.5, 0.01), (18.5, 0.01)], outcome=Outcome.SHED)
    assert recovery_s(recording.calls(), (0, 10), 10, 20) == 3.0
    assert recovery_s(recording.calls(), (0, 10), 10, 12.9) is None  # three whole seconds are not left


def test_without_a_call_that_ended_well_there_is_nothing_to_get_back_to() -> None:
    recording = record(*[(10 + at / 10, 0.1) for at in range(100)])
    add(recording, [(at / 10, 2.0) for at in range(100)], outcome=Outcome.DEADLINE)
    assert recovery_s(recording.calls(), (0, 10), 10, 20) is None


def test_a_recording_survives_the_way_from_a_worker() -> None:
    worker, master = Recording(), record((5.0, 0.5))
    add(worker, [(1.0, 0.25)], kind=CallKind.SEARCH, outcome=Outcome.DEADLINE)
    worker.held_back = 3
    master.merge(worker.take())
    add(worker, [(2.0, 0.5)])
    worker.unsent = 1
    master.merge(worker.take())
    assert worker.take()["rows"] == b""
    calls = master.calls()
    assert calls.dtype == CALL
    assert calls["start"].tolist() == [1.0, 2.0, 5.0]
    assert calls["latency"].tolist() == [0.25, 0.5, 0.5]
    assert (master.held_back, master.unsent) == (3, 1)
    assert master.messages == {"deadline": "it is deadline"}


def test_a_recording_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resrank.loadtest.recording.MAX_CALLS", 10)
    recording = record(*[(at, 0.1) for at in range(12)])
    assert (len(recording.calls()), recording.dropped) == (10, 2)
    other = record(*[(at, 0.1) for at in range(4)])
    recording.merge(other.take())
    assert (len(recording.calls()), recording.dropped) == (10, 6)


def test_a_timeline_counts_every_call_once() -> None:
    rng = np.random.default_rng(0)
    recording = Recording()
    for outcome in (Outcome.OK, Outcome.SHED):
        add(recording, np.column_stack([rng.uniform(0, 30, 400), rng.uniform(0, 1, 400)]), outcome=outcome)
    steps = timeline(recording.calls(), 31.0)
    assert sum(step.calls for step in steps.steps) == 800
    assert steps.ended[Outcome.OK].sum() == 400
    assert steps.ended[Outcome.SHED].sum() == 400
    calls = recording.calls()
    ends = calls["start"] + calls["latency"]
    assert steps.in_flight[9] == np.count_nonzero((calls["start"] <= 10) & (ends > 10))
    rows = list(steps.rows())
    assert len(rows) == 31
    assert sum(int(row["calls"] or 0) for row in rows) == 800


def test_a_long_timeline_has_longer_steps() -> None:
    steps = timeline(record((0.0, 0.1), (3599.0, 0.1)).calls(), 3600)
    assert steps.step_s == 3
    assert len(steps.steps) == 1200
