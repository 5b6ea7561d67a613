"""Triton's own account of the load: its Prometheus counters, once a second."""

from __future__ import annotations

import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from prometheus_client.parser import text_string_to_metric_families

from resrank.core.addresses import is_local_url
from resrank.core.names import LoadMetric

_COMPUTE = (
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
)


@dataclass(frozen=True)
class ModelCounters:
    """One model since the server's start.

    Attributes:
        requests: Requests that were answered.
        failures: Requests that were refused, shed or failed.
        rows: Rows in the requests that were answered.
        executions: Batches that ran.
        queue_us: Microseconds that requests spent in the model's queue; None for a model that calls others.
        compute_us: Microseconds that the model worked on them, copies included; likewise.
        total_us: Microseconds from their acceptance to their answer, as Triton saw it; None where it saw no more than
            that they were handed over.
        pending: Requests that wait at this moment, or are under way in a model that calls others.
    """

    requests: float = 0
    failures: float = 0
    rows: float = 0
    executions: float = 0
    queue_us: float | None = 0
    compute_us: float | None = 0
    total_us: float | None = 0
    pending: float = 0


_FIELDS = {
    "nv_inference_request_success": "requests",
    "nv_inference_request_failure": "failures",
    "nv_inference_count": "rows",
    "nv_inference_exec_count": "executions",
    "nv_inference_request_duration_us": "total_us",
    "nv_inference_queue_duration_us": "queue_us",
    "nv_inference_pending_request_count": "pending",
    **dict.fromkeys(_COMPUTE, "compute_us"),
}
_OWN_FIELDS = {
    LoadMetric.REQUESTS: "requests",
    LoadMetric.ROWS: "rows",
    LoadMetric.BATCHES: "executions",
    LoadMetric.QUEUE: "queue_us",
    LoadMetric.COMPUTE: "compute_us",
    LoadMetric.WAITING: "pending",
    LoadMetric.UNDER_WAY: "under_way",
}
"""What models count themselves to whom Triton only hands requests over, so that its own figures of them say nothing."""


def parse_metrics(text: str) -> dict[str, ModelCounters]:
    """Reads Triton's metrics page.

    Returns:
        Model to its counters, versions and reasons of failure added up.

    Raises:
        ValueError: It is not that format, or tells of no model.
    """
    counted: dict[str, dict[str, float]] = {}
    own: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            # The family's name: the parser gives counters' samples the ending of OpenMetrics, which Triton leaves out.
            if (name := _FIELDS.get(family.name)) is not None and "model" in sample.labels:
                _add(counted, sample.labels["model"], name, sample.value)
            elif sample.name in _OWN_FIELDS and "model" in sample.labels:
                name = _OWN_FIELDS[LoadMetric(sample.name)]
                if sample.labels.get("outcome", "ok") != "ok":
                    name = "failures"
                scale = 1e6 if name.endswith("_us") else 1.0
                _add(own, sample.labels["model"], name, scale * sample.value)
    if not counted:
        raise ValueError("no counters of models in it")
    models = {model: ModelCounters(**counters) for model, counters in counted.items()}
    for counters in own.values():  # of an engine those that wait, as Triton has it; of who calls others all it has
        counters.setdefault("pending", counters.pop("under_way", 0.0))
    handed_over = ModelCounters(queue_us=None, compute_us=None, total_us=None)
    return models | {model: replace(handed_over, **counters) for model, counters in own.items()}


def read_metrics(url: str, *, timeout_s: float) -> dict[str, ModelCounters]:
    """Fetches and reads Triton's metrics page.

    Args:
        url: Of the page.
        timeout_s: Longest wait.

    Raises:
        OSError: It cannot be fetched.
        ValueError: See :func:`parse_metrics`.
    """
    # http, from this project's own callers; a proxy of the environment is not asked for this machine's own page.
    handlers = [urllib.request.ProxyHandler({})] if is_local_url(url) else []
    with urllib.request.build_opener(*handlers).open(url, timeout=timeout_s) as page:
        return parse_metrics(page.read().decode())


def _mean_ms(before_us: float | None, after_us: float | None, requests: float) -> float | None:
    if before_us is None or after_us is None or requests <= 0:
        return None
    return (after_us - before_us) / requests / 1e3


def _add(models: dict[str, dict[str, float]], model: str, name: str, value: float) -> None:
    counters = models.setdefault(model, {})
    counters[name] = counters.get(name, 0.0) + value


@dataclass(frozen=True)
class Interval:
    """One model between two readings.

    Attributes:
        end: Seconds from the run's start to the second reading.
        requests: Answered a second.
        failures: Refused, shed or failed a second.
        rows_per_batch: Rows that ran together; None when none ran.
        queue_ms: Mean time in the queue of a request that was answered; None when none was, or it is not known.
        compute_ms: Mean time of work on one, likewise.
        pending: Requests that waited at the second reading.
    """

    end: float
    requests: float
    failures: float
    rows_per_batch: float | None
    queue_ms: float | None
    compute_ms: float | None
    pending: float


@dataclass
class ServerMetrics:
    """All readings of a run.

    Attributes:
        readings: Seconds from the run's start, and counters by model.
        problem: Why there are none, or why some are missing; empty when all is well.
    """

    readings: list[tuple[float, dict[str, ModelCounters]]] = field(default_factory=list)
    problem: str = ""

    def intervals(self) -> dict[str, list[Interval]]:
        """Between each two readings, by model; only models that had work in the run."""
        series: dict[str, list[Interval]] = {}
        for (start, before), (end, after) in zip(self.readings, self.readings[1:], strict=False):
            for model in after:
                if model in before and end > start:
                    interval = _between(before[model], after[model], end, end - start)
                    series.setdefault(model, []).append(interval)
        return {
            model: intervals for model, intervals in series.items() if any(i.requests or i.failures for i in intervals)
        }

    def totals(self) -> dict[str, Interval]:
        """From the first reading to the last, by model; only models that had work."""
        first_and_last = ServerMetrics([self.readings[0], self.readings[-1]]) if len(self.readings) > 1 else self
        return {model: intervals[0] for model, intervals in first_and_last.intervals().items()}


def _between(before: ModelCounters, after: ModelCounters, end: float, seconds: float) -> Interval:
    requests = after.requests - before.requests
    executions = after.executions - before.executions
    return Interval(
        end=end,
        requests=requests / seconds,
        failures=(after.failures - before.failures) / seconds,
        rows_per_batch=(after.rows - before.rows) / executions if executions > 0 else None,
        queue_ms=_mean_ms(before.queue_us, after.queue_us, requests),
        compute_ms=_mean_ms(before.compute_us, after.compute_us, requests),
        pending=after.pending,
    )


def engines_first(models: Sequence[str]) -> list[str]:
    """Models in the order in which a reader looks for them: the engines, then the rest by name."""
    return sorted(models, key=lambda model: (model not in ("reranker", "encoder"), model))
