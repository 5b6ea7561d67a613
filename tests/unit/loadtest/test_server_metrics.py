"""Triton's metrics page, and what two readings of it say about the time between them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from resrank.loadtest.server_metrics import Interval, ModelCounters, ServerMetrics, engines_first, parse_metrics

# As Triton 2.51 writes it, cut to two models.
PAGE = """\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="encoder",version="1"} 309
nv_inference_request_success{model="encoder",version="2"} 1
nv_inference_request_success{model="reranker",version="1"} 4
# HELP nv_inference_request_failure Number of failed inference requests, all batch sizes
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="encoder",reason="OTHER",version="1"} 2
nv_inference_request_failure{model="encoder",reason="REJECTED",version="1"} 390
# HELP nv_inference_count Number of inferences performed (does not include cached requests)
# TYPE nv_inference_count counter
nv_inference_count{model="encoder",version="1"} 609
# HELP nv_inference_exec_count Number of model executions performed (does not include cached requests)
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="encoder",version="1"} 203
# HELP nv_inference_queue_duration_us Cumulative inference queuing duration in microseconds
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{model="encoder",version="1"} 5000
# HELP nv_inference_compute_input_duration_us Cumulative compute input duration in microseconds
# TYPE nv_inference_compute_input_duration_us counter
nv_inference_compute_input_duration_us{model="encoder",version="1"} 100
# HELP nv_inference_compute_infer_duration_us Cumulative compute inference duration in microseconds
# TYPE nv_inference_compute_infer_duration_us counter
nv_inference_compute_infer_duration_us{model="encoder",version="1"} 2000
# HELP nv_inference_compute_output_duration_us Cumulative inference compute output duration in microseconds
# TYPE nv_inference_compute_output_duration_us counter
nv_inference_compute_output_duration_us{model="encoder",version="1"} 30
# HELP nv_inference_pending_request_count Instantaneous number of pending requests awaiting execution per-model.
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="encoder",version="1"} 7
# HELP nv_cpu_utilization CPU utilization rate [0.0 - 1.0]
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.5
"""


def test_a_page_is_read_by_model_with_versions_and_reasons_added_up() -> None:
    assert parse_metrics(PAGE) == {
        "encoder": ModelCounters(
            requests=310, failures=392, rows=609, executions=203, queue_us=5000, compute_us=2130, pending=7
        ),
        "reranker": ModelCounters(requests=4),
    }


OWN = """
# HELP resrank_requests_total Requests that ended, by outcome
# TYPE resrank_requests_total counter
resrank_requests_total{model="encoder",outcome="ok"} 300
resrank_requests_total{model="encoder",outcome="shed"} 20
resrank_requests_total{model="encoder",outcome="deadline"} 3
resrank_requests_total{model="rerank_text",outcome="ok"} 2
# TYPE resrank_rows_total counter
resrank_rows_total{model="encoder"} 600
# TYPE resrank_batches_total counter
resrank_batches_total{model="encoder"} 150
# TYPE resrank_queue_seconds_total counter
resrank_queue_seconds_total{model="encoder"} 1.5
# TYPE resrank_compute_seconds_total counter
resrank_compute_seconds_total{model="encoder"} 2.25
# TYPE resrank_waiting_requests gauge
resrank_waiting_requests{model="encoder"} 4
# TYPE resrank_requests_under_way gauge
resrank_requests_under_way{model="encoder"} 7
resrank_requests_under_way{model="rerank_text"} 2
"""


def test_what_a_model_counts_itself_replaces_what_triton_saw_of_it() -> None:
    models = parse_metrics(PAGE + OWN)
    assert models["encoder"] == ModelCounters(
        requests=300,
        failures=23,
        rows=600,
        executions=150,
        queue_us=1_500_000,
        compute_us=2_250_000,
        total_us=None,
        pending=4,
    )
    assert models["reranker"] == ModelCounters(requests=4)
    calls_others = ModelCounters(requests=2, queue_us=None, compute_us=None, total_us=None, pending=2)
    assert models["rerank_text"] == calls_others
    later = replace(calls_others, requests=5)
    (interval,) = ServerMetrics([(0.0, {"m": calls_others}), (1.0, {"m": later})]).intervals()["m"]
    assert (interval.requests, interval.queue_ms, interval.compute_ms) == (3, None, None)


@pytest.mark.parametrize("page", ["", "<html>not found</html>", "nv_cpu_utilization 0.5\n"])
def test_another_page_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_metrics(page)


def test_two_readings_say_what_happened_between_them() -> None:
    before = ModelCounters(requests=10, failures=1, rows=40, executions=5, queue_us=1000, compute_us=2000)
    after = ModelCounters(
        requests=30, failures=4, rows=120, executions=15, queue_us=41_000, compute_us=102_000, pending=2
    )
    idle = ModelCounters(requests=9)
    metrics = ServerMetrics([(1.0, {"m": before, "idle": idle}), (3.0, {"m": after, "idle": idle, "new": idle})])
    expected = Interval(end=3.0, requests=10, failures=1.5, rows_per_batch=8, queue_ms=2.0, compute_ms=5.0, pending=2)
    assert metrics.intervals() == {"m": [expected]}
    assert metrics.totals() == {"m": expected}


def test_without_requests_there_is_no_mean() -> None:
    shed = ModelCounters(failures=3)
    metrics = ServerMetrics([(0.0, {"m": ModelCounters()}), (1.0, {"m": shed}), (2.0, {"m": shed})])
    first, second = metrics.intervals()["m"]
    assert (first.failures, first.queue_ms, first.compute_ms, first.rows_per_batch) == (3, None, None, None)
    assert second.failures == 0
    assert ServerMetrics().totals() == {}


def test_engines_stand_first() -> None:
    assert engines_first(["rerank", "encoder", "a", "reranker"]) == ["encoder", "reranker", "a", "rerank"]
