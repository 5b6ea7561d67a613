"""Reads Triton's metrics page once a second while a run lasts."""

from __future__ import annotations

import gevent
from gevent import Greenlet

from resrank.loadtest.load import Load
from resrank.loadtest.server_metrics import ServerMetrics, read_metrics

_EVERY_S = 1.0
_TIMEOUT_S = 2.0


class MetricsSampler:
    """Samples in a greenlet of its own.

    Args:
        url: Of the metrics page.
        load: Whose clock the readings follow.
    """

    def __init__(self, url: str, load: Load) -> None:
        self.metrics = ServerMetrics()
        self._url = url
        self._load = load
        self._greenlet: Greenlet | None = None

    def start(self) -> None:
        """Starts, with nothing read."""
        self.stop()
        self.metrics = ServerMetrics()
        self._greenlet = gevent.spawn(self._sample)

    def stop(self) -> None:
        """Reads a last time and ends."""
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None
            self._read()

    def _sample(self) -> None:
        due = max(0.0, self._load.elapsed())
        while True:
            gevent.sleep(max(0.0, due - self._load.elapsed()))
            self._read()
            due = max(due + _EVERY_S, self._load.elapsed())

    def _read(self) -> None:
        try:
            models = read_metrics(self._url, timeout_s=_TIMEOUT_S)
        except (OSError, ValueError) as error:
            self.metrics.problem = f"{self._url} cannot be read: {error}"
            return
        self.metrics.readings.append((self._load.elapsed(), models))
