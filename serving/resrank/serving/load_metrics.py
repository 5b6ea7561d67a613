"""What Triton's metrics endpoint tells of a model whose requests wait in its own process.

Triton's figures of such a model end when ``execute`` returns, which is at once: its queue is always empty, its compute
time that of taking a request, and what is shed later counts as answered.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from resrank.core.fail_open import REASONS
from resrank.core.names import LoadMetric
from resrank.core.outcomes import Outcome, outcome_of
from resrank.serving.step import Answer, CancelledRequestError

PUBLISH_EVERY_S = 0.25
"""Each changed figure is a message to Triton of about 50 microseconds, too much for every call of a small engine."""

_DESCRIPTIONS = {
    LoadMetric.REQUESTS: "Requests that ended, by outcome",
    LoadMetric.UNDER_WAY: "Requests that are under way",
    LoadMetric.WAITING: "Requests that wait for the engine",
    LoadMetric.WAITING_LIMIT: "Requests that may wait: by its measured speed what the engine answers in a second",
    LoadMetric.ROWS: "Rows that the engine computed",
    LoadMetric.BATCHES: "Batches that the engine computed",
    LoadMetric.QUEUE: "Time that computed requests waited for their batch, together",
    LoadMetric.COMPUTE: "Time of the batches that requests were computed in, one batch once for each of its requests",
    LoadMetric.NOT_RERANKED: "Requests that were answered without the reranker, or by words alone, by what failed",
}
_LABELS: Mapping[LoadMetric, tuple[str, Iterable[Outcome]]] = {
    LoadMetric.REQUESTS: ("outcome", Outcome),
    LoadMetric.NOT_RERANKED: ("reason", REASONS),
}
"""Names and values of the label that some have beside ``model``."""

_GAUGES = (LoadMetric.UNDER_WAY, LoadMetric.WAITING, LoadMetric.WAITING_LIMIT)


class LoadMetrics:
    """Counters and a gauge of one model instance, on Triton's own ``/metrics``.

    Counted here, and told to Triton by a thread of its own every ``PUBLISH_EVERY_S``.

    Args:
        pb_utils: The module ``triton_python_backend_utils``.
        model: The model's name, which becomes a label.
    """

    figures: ClassVar[tuple[LoadMetric, ...]]
    """What is published."""

    def __init__(self, pb_utils: Any, model: str) -> None:
        family = pb_utils.MetricFamily
        # Triton drops a metric whose family is gone.
        self._families = {
            name: family(
                name=name.value,
                description=_DESCRIPTIONS[name],
                kind=family.GAUGE if name in _GAUGES else family.COUNTER,
            )
            for name in self.figures
        }
        # All of them from the start, at 0: what appears later is no rate to Prometheus until it has changed once more.
        self._metrics = {
            (name, value): made.Metric(labels={"model": model} | ({label: value} if label else {}))
            for name, made in self._families.items()
            for label, values in [_LABELS.get(name, ("", ("",)))]
            for value in values
        }
        self._log = pb_utils.Logger
        self._lock = threading.Lock()
        self._added: Counter[tuple[LoadMetric, str]] = Counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._publish_until_closed, name="load metrics", daemon=True)
        self._thread.start()

    def ended(self, outcome: Answer) -> None:
        """Counts one request that was answered or failed."""
        self._add({(LoadMetric.REQUESTS, outcome_name(outcome)): 1})

    def under_way(self, more: int) -> None:
        """Counts requests that begin, or, below 0, that end."""
        self._add({(LoadMetric.UNDER_WAY, ""): more})

    def close(self) -> None:
        """Publishes a last time and ends the thread."""
        self._ended.set()
        self._thread.join()

    def _add(self, figures: dict[tuple[LoadMetric, str], Any]) -> None:
        with self._lock:
            self._added.update(figures)

    def _publish_until_closed(self) -> None:
        while not self._ended.wait(PUBLISH_EVERY_S):
            self._publish()
        self._publish()

    def _publish(self) -> None:
        with self._lock:
            added, self._added = self._added, Counter()
        for key, figure in added.items():
            if figure:
                try:
                    self._metrics[key].increment(figure)
                except Exception as error:  # the next figures are worth as much as this one
                    self._log.log_error(f"{key[0].value}: {figure} could not be published: {error!r}")


class CallerMetrics(LoadMetrics):
    """Of a model that calls other models."""

    figures: ClassVar[tuple[LoadMetric, ...]] = (LoadMetric.REQUESTS, LoadMetric.UNDER_WAY)


class SearchMetrics(CallerMetrics):
    """Of ``search``, which may be answered without some of the others."""

    figures = (*CallerMetrics.figures, LoadMetric.NOT_RERANKED)

    def not_reranked(self, reason: Outcome) -> None:
        """Counts a request that was answered all the same, since its caller wanted that."""
        self._add({(LoadMetric.NOT_RERANKED, reason): 1})


class EngineMetrics(LoadMetrics):
    """Of a model with an engine."""

    figures = (
        LoadMetric.REQUESTS,
        LoadMetric.UNDER_WAY,
        LoadMetric.WAITING,
        LoadMetric.WAITING_LIMIT,
        LoadMetric.ROWS,
        LoadMetric.BATCHES,
        LoadMetric.QUEUE,
        LoadMetric.COMPUTE,
    )

    def waiting(self, more: int) -> None:
        """Counts requests that begin to wait, or, below 0, that end it."""
        self._add({(LoadMetric.WAITING, ""): more})

    def waiting_limit(self, requests: int) -> None:
        """Tells how many may wait; once."""
        self._add({(LoadMetric.WAITING_LIMIT, ""): requests})

    def batch(self, rows: int, queue_s: float, compute_s: float) -> None:
        """Counts one batch.

        Args:
            rows: Of all requests in it.
            queue_s: Seconds that its requests had waited, together.
            compute_s: Seconds that it took, times its requests.
        """
        self._add(
            {
                (LoadMetric.BATCHES, ""): 1,
                (LoadMetric.ROWS, ""): rows,
                (LoadMetric.QUEUE, ""): queue_s,
                (LoadMetric.COMPUTE, ""): compute_s,
            }
        )


def outcome_name(outcome: Answer) -> str:
    """What a request's outcome is called in ``resrank_requests_total``."""
    if isinstance(outcome, CancelledRequestError):
        return Outcome.CANCELLED.value
    return outcome_of(outcome).value if isinstance(outcome, Exception) else Outcome.OK.value
