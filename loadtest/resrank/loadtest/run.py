"""A run in locust's hands: in this process, or in workers that a master commands."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.runners import STATE_MISSING, STATE_RUNNING, STATE_SPAWNING, MasterRunner
from locust.stats import CSV_STATS_INTERVAL_SEC, PERCENTILES_TO_REPORT, StatsCSVFileWriter, stats_history

from resrank.loadtest.callers import Callers
from resrank.loadtest.errors import LoadTestError
from resrank.loadtest.load import LEAD_S, Load, Part, now
from resrank.loadtest.metrics_sampler import MetricsSampler
from resrank.loadtest.result import RunResult
from resrank.loadtest.scenario import Scenario
from resrank.loadtest.server_metrics import ServerMetrics
from resrank.loadtest.users import PhasesShape, user_class

LOOPBACK = "127.0.0.1"

_GRACE_S = 5.0
"""A call ends by its deadline; locust may stop a user that much later at the earliest."""

_OTHER_THREADS = 10
"""For what gevent itself needs threads for."""

_FAREWELL_S = 1.0
"""How long a worker stays after its last report, so that its messages leave it."""

_LAST_REPORTS_S = 10.0
"""How long a master waits for them. Users of the open loop have gone by themselves when a run is stopped, so that
locust takes it for ended before its workers have told of all their calls."""

_HELLO, _BEGIN = "resrank_hello", "resrank_begin"
_KEY = "resrank"  # of this project's part in the reports that locust's workers send


@dataclass
class _Workers:
    """What a master knows of its workers in one run."""

    count: int = 1
    asked: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    late: bool = False


class ScenarioRun:
    """A scenario that can be run any number of times, in this process or by workers.

    Args:
        scenario: What to run.
        callers: Makes the calls; None in a master.
        metrics_url: Triton's metrics page; None in a worker, which leaves it to the master.
        on_end: Called with the result of each run that ends.
    """

    def __init__(
        self,
        scenario: Scenario,
        callers: Callers | None,
        metrics_url: str | None,
        on_end: Callable[[RunResult], None] = lambda _: None,
    ) -> None:
        # gRPC waits for every answer in a thread of gevent's pool, of 10 by default: the answer to an eleventh call,
        # even a refusal, would be seen when one of the first ten has ended.
        gevent.get_hub().threadpool.maxsize = scenario.load.most_in_flight + _OTHER_THREADS
        # Only gentle stops: users finish their call, and locust kills none that its deadline would not have ended.
        self.environment = Environment(stop_timeout=scenario.deadline_s + _GRACE_S)
        self.load = Load(scenario, callers, self.environment)
        self.environment.user_classes = [user_class(self.load)]
        self.ended = Event()
        self.result: RunResult | None = None
        self._leaving = Event()
        self._on_end = on_end
        self._sampler = None if metrics_url is None else MetricsSampler(metrics_url, self.load)
        self._stopped_at = 0.0
        self._workers = _Workers()
        self._refused = ""

    def prepare_here(self) -> None:
        """Makes this process run the scenario by itself."""
        self._command()
        self.environment.create_local_runner()

    def prepare_master(self, port: int) -> None:
        """Makes this process command workers.

        Args:
            port: Where they come to, on loopback.

        Raises:
            LoadTestError: The port is taken.
        """
        self._command()
        try:
            runner = self.environment.create_master_runner(LOOPBACK, port)
        except SystemExit:  # locust's way to say so
            raise LoadTestError(
                f"port {port} on {LOOPBACK} is in use: stop the other master or choose another port"
            ) from None
        runner.register_message(_HELLO, self._on_hello)
        events: Any = self.environment.events
        events.worker_report.add_listener(self._on_worker_report)
        events.worker_connect.add_listener(self._on_worker_connect)

    def wait_for_workers(self, count: int, wait_s: float) -> None:
        """Returns when that many workers have come.

        Raises:
            LoadTestError: They have not in time, or one has another scenario.
        """
        runner = self._runner
        waited = 0.0
        while runner.worker_count < count and not self._refused:
            if waited >= wait_s:
                raise LoadTestError(f"{runner.worker_count} of {count} workers came within {wait_s:g} s")
            gevent.sleep(0.1)
            waited += 0.1
        gevent.sleep(0.2)  # a worker says which scenario it has right after it came
        if self._refused:
            raise LoadTestError(self._refused)

    def serve_master(self, port: int) -> None:
        """Makes the calls that a master orders, until its last run has ended, it quits or this process is told to stop.

        Args:
            port: The master's, on loopback.

        Raises:
            LoadTestError: No master answers.
        """
        events: Any = self.environment.events  # its hooks are not typed
        try:
            runner = self.environment.create_worker_runner(LOOPBACK, port)
        except ConnectionError:
            raise LoadTestError(f"no master answers at {LOOPBACK}:{port}") from None
        last = ended = False

        def on_begin(msg: Any, **_: object) -> None:
            nonlocal last
            last = msg.data.pop("last")
            self.load.begin(Part(**msg.data))

        def on_report(data: dict[str, Any], **_: object) -> None:
            data[_KEY] = {**self.load.recording.take(), "ended": ended}

        def on_stop(**_: object) -> None:
            nonlocal ended
            ended = True
            runner._send_stats()  # what happened since the last report, and that this was all
            ended = self.load.ordered = False
            if last:
                self._leaving.set()

        def leave_with_runner() -> None:
            runner.greenlet.join()  # which end when the master quits, or answers no more
            self._leaving.set()

        runner.register_message(_BEGIN, on_begin)
        events.report_to_master.add_listener(on_report)
        events.test_stop.add_listener(on_stop)
        runner.send_message(_HELLO, {"digest": self._digest()})
        watching = gevent.spawn(leave_with_runner)
        self._leaving.wait()
        gevent.sleep(_FAREWELL_S)
        watching.kill()
        runner.greenlet.kill()

    def run(self, csv_prefix: Path | None = None) -> RunResult:
        """Runs the scenario once, to its end.

        Args:
            csv_prefix: Where locust's own statistics go; None for nowhere.
        """
        with self._csv(csv_prefix):
            self._runner.start_shape()
            self.ended.wait()
        self._runner.quit()
        assert self.result is not None
        return self.result

    def serve_web(self, port: int, stop: Event, ready: Callable[[], None]) -> None:
        """Serves locust's web interface, from which runs are started, until told to stop.

        Args:
            port: On loopback.
            stop: Set by the caller.
            ready: Called when the interface can be opened.

        Raises:
            LoadTestError: The port is taken.
        """
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                raise LoadTestError(
                    f"the web interface cannot listen on {LOOPBACK}:{port} ({error.strerror})"
                ) from None
        history = gevent.spawn(stats_history, self._runner)
        ui: Any = self.environment.create_web_ui(LOOPBACK, port)
        ready()
        stop.wait()
        self._runner.stop()  # which workers are told of, as they are not by a quit alone, so that they report
        self._runner.quit()
        history.kill()
        ui.stop()

    def stop(self) -> None:
        """Ends the run early: no new calls, those under way end by themselves. A worker then leaves its master."""
        if self.environment.runner is not None:
            self.environment.runner.stop()
        self._leaving.set()

    @property
    def _runner(self) -> Any:
        assert self.environment.runner is not None
        return self.environment.runner

    def _command(self) -> None:
        """What a process does that starts runs and puts their results together."""
        self.environment.shape_class = PhasesShape(self.load)
        events: Any = self.environment.events  # its hooks are not typed
        events.test_start.add_listener(self._on_start)
        events.test_stopping.add_listener(self._on_stopping)
        events.test_stop.add_listener(self._on_stop)

    def _on_start(self, **_: object) -> None:
        self.ended.clear()
        epoch = now() + LEAD_S
        runner = self._runner
        self._workers = _Workers()
        if isinstance(runner, MasterRunner):
            clients = [client.id for client in runner.clients.ready]
            self._workers.count = len(clients)
            self._workers.asked = set(clients)
            for index, client in enumerate(clients):
                part = {"index": index, "count": len(clients), "epoch": epoch}
                runner.send_message(_BEGIN, {**part, "last": self.environment.web_ui is None}, client)
        self.load.begin(Part(0, self._workers.count, epoch))
        if self._sampler is not None:
            self._sampler.start()

    def _on_stopping(self, **_: object) -> None:
        self._stopped_at = max(0.0, self.load.elapsed())

    def _on_stop(self, **_: object) -> None:
        if self._sampler is not None:
            self._sampler.stop()
        scenario, recording = self.load.scenario, self.load.recording
        seconds = min(self._stopped_at, scenario.duration_s)
        self._wait_for_last_reports()
        problems = []
        if seconds < scenario.duration_s:
            problems.append(f"stopped after {seconds:.1f} s of {scenario.duration_s:g} s")
        if isinstance(self._runner, MasterRunner) and len(self._workers.finished) < self._workers.count:
            problems.append(
                f"{self._workers.count - len(self._workers.finished)} of {self._workers.count} workers were lost: "
                "their part of the load is missing"
            )
        if self._workers.late:
            problems.append("a worker came while the run lasted: the load was not the scenario's")
        if recording.dropped:
            problems.append(f"{recording.dropped} calls were made after the last one that a run keeps")
        self.result = RunResult(
            scenario=scenario,
            recording=recording,
            metrics=ServerMetrics() if self._sampler is None else self._sampler.metrics,
            epoch=self.load.part.epoch,
            seconds=seconds,
            processes=self._workers.count,
            problems=tuple(problems),
        )
        self._on_end(self.result)
        self.ended.set()

    def _wait_for_last_reports(self) -> None:
        """Returns when all workers that are still there have told that they are done."""
        workers, left_s = self._workers, _LAST_REPORTS_S
        while left_s > 0 and any(self._is_there(worker) for worker in workers.asked - workers.finished):
            gevent.sleep(0.1)
            left_s -= 0.1

    def _is_there(self, worker: str) -> bool:
        client = self._runner.clients.get(worker)
        return client is not None and client.state != STATE_MISSING

    def _on_worker_connect(self, **_: object) -> None:
        # Locust now moves users to the new worker, which takes load from the others.
        if self._runner.state in {STATE_SPAWNING, STATE_RUNNING}:
            self._workers.late = True

    def _on_hello(self, msg: Any, **_: object) -> None:
        if msg.data["digest"] != self._digest():
            self._refused = "a worker came with another scenario: start all with the same file"

    def _on_worker_report(self, client_id: str, data: dict[str, Any]) -> None:
        part = data.get(_KEY)
        if part is None:
            return
        if part.pop("ended"):
            self._workers.finished.add(client_id)
        self.load.recording.merge(part)

    def _digest(self) -> str:
        return hashlib.sha256(self.load.scenario.model_dump_json().encode()).hexdigest()

    @contextmanager
    def _csv(self, prefix: Path | None) -> Iterator[None]:
        if prefix is None:
            yield
            return
        writer = StatsCSVFileWriter(self.environment, PERCENTILES_TO_REPORT, str(prefix))
        writing = gevent.spawn(writer.stats_writer)
        try:
            yield
            gevent.sleep(1.5 * CSV_STATS_INTERVAL_SEC)  # so that the last figures are in the files
        finally:
            writing.kill()
            writer.close_files()
