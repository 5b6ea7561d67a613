"""What a model counts reaches Triton's metrics, at 0 from the start and in time."""

from __future__ import annotations

import time

import pytest

from resrank.core.errors import DeadlineExceededError, InvalidInputError, QueueFullError, ResRankError
from resrank.core.fail_open import REASONS
from resrank.core.outcomes import Outcome
from resrank.serving.load_metrics import PUBLISH_EVERY_S, CallerMetrics, EngineMetrics, SearchMetrics, outcome_name
from resrank.serving.step import Answer, CancelledRequestError
from support.pb_metrics import PbMetrics


def test_figures_are_there_before_anything_has_happened() -> None:
    pb = PbMetrics()
    EngineMetrics(pb, "encoder").close()
    assert set(pb.values.values()) == {0}
    outcomes = {f"resrank_requests_total{{{outcome}}}" for outcome in Outcome}
    assert outcomes < set(pb.values)
    pb = PbMetrics()
    CallerMetrics(pb, "search").close()
    assert set(pb.values) == outcomes | {"resrank_requests_under_way"}, "what it cannot know is not 0"
    pb = PbMetrics()
    metrics = SearchMetrics(pb, "search")
    metrics.not_reranked(Outcome.DEADLINE)
    metrics.close()
    told = {reason: pb.values[f"resrank_not_reranked_total{{{reason}}}"] for reason in REASONS}
    assert told == {Outcome.UNAVAILABLE: 0, Outcome.SHED: 0, Outcome.DEADLINE: 1, Outcome.FAILED: 0}


def test_what_happened_is_added_up_and_published() -> None:
    pb = PbMetrics()
    metrics = EngineMetrics(pb, "encoder")
    metrics.waiting_limit(9)
    metrics.waiting(3)
    metrics.waiting(-2)
    metrics.batch(4, 0.5, 2.0)
    metrics.batch(2, 0.25, 1.0)
    metrics.ended({})
    metrics.ended(QueueFullError("full"))
    until = time.monotonic() + 40 * PUBLISH_EVERY_S
    while pb.values["resrank_batches_total"] < 2 and time.monotonic() < until:
        time.sleep(PUBLISH_EVERY_S / 5)
    metrics.ended({})
    metrics.close()
    assert {name: value for name, value in pb.values.items() if value} == {
        "resrank_waiting_requests": 1,
        "resrank_waiting_requests_limit": 9,
        "resrank_batches_total": 2,
        "resrank_rows_total": 6,
        "resrank_queue_seconds_total": 0.75,
        "resrank_compute_seconds_total": 3.0,
        "resrank_requests_total{ok}": 2,
        "resrank_requests_total{shed}": 1,
    }


def test_a_figure_that_cannot_be_published_is_logged_and_the_next_ones_are() -> None:
    pb = PbMetrics()
    metrics = CallerMetrics(pb, "search")
    pb.broken = True
    metrics.under_way(1)
    until = time.monotonic() + 40 * PUBLISH_EVERY_S
    while not pb.logged and time.monotonic() < until:
        time.sleep(PUBLISH_EVERY_S / 5)
    pb.broken = False
    metrics.ended({})
    metrics.close()
    assert pb.logged == ["resrank_requests_under_way: 1 could not be published: RuntimeError('broken')"]
    assert pb.values["resrank_requests_total{ok}"] == 1


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        ({}, "ok"),
        (InvalidInputError("QUERY", "empty"), "invalid"),
        (QueueFullError("full"), "shed"),
        (DeadlineExceededError("late"), "deadline"),
        (CancelledRequestError("gone"), "cancelled"),
        (ResRankError("broken"), "failed"),
        (ZeroDivisionError("oops"), "failed"),
    ],
)
def test_every_outcome_has_a_name(outcome: Answer, name: str) -> None:
    assert outcome_name(outcome) == name
    assert Outcome(name)
