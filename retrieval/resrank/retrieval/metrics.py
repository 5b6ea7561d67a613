"""What the sidecar's metrics page tells, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

import resrank.core
from resrank.core.addresses import bare_host, join_address
from resrank.core.errors import RetrievalError
from resrank.core.outcomes import Outcome
from resrank.core.sidecar.v1 import retrieval_pb2 as pb

METHODS = tuple(method.name for method in pb.DESCRIPTOR.services_by_name["RetrievalService"].methods)
OPERATIONS = ("found", "read", "inserted", "updated", "deleted")
THREADS = ("read", "write")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class SidecarMetrics:
    """Counters, gauges and histograms of one sidecar, all of them there from the start, at 0.

    What appears later is no rate to Prometheus until it has changed once more.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series each, of when it began
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "resrank_retrieval_requests",
            "Requests that ended, by outcome",
            ["method", "outcome"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "resrank_retrieval_request_seconds",
            "Time of a request, from its first byte to its answer",
            ["method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "resrank_retrieval_requests_in_flight", "Requests under way", ["method"], registry=self.registry
        )
        self._queue = Histogram(
            "resrank_retrieval_queue_seconds",
            "Time that admitted work waited for a thread",
            ["threads"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._received = Counter(
            "resrank_retrieval_received_bytes", "Bytes of messages that came", ["method"], registry=self.registry
        )
        self._sent = Counter(
            "resrank_retrieval_sent_bytes", "Bytes of messages that went", ["method"], registry=self.registry
        )
        self._records = Counter(
            "resrank_retrieval_records", "Passages, by what was done with them", ["operation"], registry=self.registry
        )
        for method in METHODS:
            for outcome in Outcome:
                self._requests.labels(method, outcome.value)
            for by_method in (self._seconds, self._in_flight, self._received, self._sent):
                by_method.labels(method)
        for threads in THREADS:
            self._queue.labels(threads)
        for operation in OPERATIONS:
            self._records.labels(operation)
        Info("resrank_retrieval_build", "The sidecar's version", registry=self.registry).info(
            {"version": resrank.core.__version__}
        )
        ProcessCollector(registry=self.registry)

    def watch(self, name: str, description: str, figure: Callable[[], float]) -> None:
        """Adds a gauge that is read when the page is."""
        Gauge(name, description, registry=self.registry).set_function(figure)

    @contextmanager
    def request(self, method: str, outcome: Callable[[BaseException], Outcome]) -> Iterator[None]:
        """Counts and times a request.

        Args:
            method: One of :data:`METHODS`.
            outcome: Names what ends it by an exception.
        """
        ended = Outcome.OK
        try:
            with self._in_flight.labels(method).track_inprogress(), self._seconds.labels(method).time():
                yield
        except BaseException as error:
            ended = outcome(error)
            raise
        finally:
            self._requests.labels(method, ended.value).inc()

    def waited(self, threads: str, seconds: float) -> None:
        """Counts work that got its thread."""
        self._queue.labels(threads).observe(seconds)

    def received(self, method: str, size: int) -> None:
        """Counts a message that came."""
        self._received.labels(method).inc(size)

    def sent(self, method: str, size: int) -> None:
        """Counts a message that goes."""
        self._sent.labels(method).inc(size)

    def records(self, operation: str, count: int) -> None:
        """Counts passages.

        Args:
            operation: One of :data:`OPERATIONS`.
            count: How many.
        """
        self._records.labels(operation).inc(count)


class MetricsPage:
    """The page over HTTP, in threads of its own, from its making to :meth:`close`.

    Args:
        metrics: What it shows.
        host: Address to listen on.
        port: Port; 0 lets the system choose.

    Attributes:
        url: Where it is.

    Raises:
        RetrievalError: The port is taken, or the address is not this machine's.
    """

    def __init__(self, metrics: SidecarMetrics, host: str, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(port, bare_host(host), metrics.registry)
        except OSError as error:
            raise RetrievalError(
                f"cannot show metrics on {join_address(host, port)} ({error.strerror}): choose another port or address"
            ) from error
        self.url = f"http://{join_address(host, self._server.server_port)}/metrics"

    def close(self) -> None:
        """Takes the page down."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
