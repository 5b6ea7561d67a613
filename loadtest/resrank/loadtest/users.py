"""Who makes the calls, as locust knows them: a stream of arrivals, or users who think between calls."""

from __future__ import annotations

from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Pool
from locust import LoadTestShape, User, task
from locust.exception import StopUser
from locust.runners import MasterRunner

from resrank.loadtest.arrivals import poisson_arrivals, stream_rng
from resrank.loadtest.load import LEAD_S, Load, now
from resrank.loadtest.scenario import ClosedLoad, OpenLoad

_END_S = 0.5
"""How much later than its last phase a run is ended: locust's clock starts a little before the run's."""

_SPAWN_RATE = 100.0
"""Users a second that are started when their number grows: locust warns above."""


def user_class(load: Load) -> type[User]:
    """The kind of user that makes a scenario's load."""
    if isinstance(load.scenario.load, OpenLoad):
        return _stream_class(load, load.scenario.load)
    return _user_class(load, load.scenario.load)


def _stream_class(load: Load, settings: OpenLoad) -> type[User]:
    class ArrivalStream(User):
        """The one locust user of a process in the open loop: sends every call when it arrives, and waits for none."""

        @task
        def run_stream(self) -> None:
            if not load.ordered:
                raise StopUser
            assert load.callers is not None
            part, stopping = load.part, Event()
            self.environment.events.test_stopping.add_listener(listener := _setter(stopping))
            rng = stream_rng(load.scenario.seed, part.index)
            arrivals = poisson_arrivals(
                load.scenario.profile, stream_rng(load.scenario.seed, part.count + part.index), share=1 / part.count
            )
            pool, free_at = Pool(settings.max_in_flight), 0.0
            for start in arrivals:
                call = load.callers.draw(rng)  # before its time, so that drawing does not make it late
                if stopping.wait(timeout=max(0.0, start - load.elapsed())):
                    break
                if pool.full():
                    pool.wait_available()
                    free_at = load.elapsed()
                load.recording.held_back += start < free_at
                pool.spawn(load.perform, call, start)
            # What is under way is never cancelled: it ends by its own deadline.
            pool.join()
            self.environment.events.test_stopping.remove_listener(listener)
            raise StopUser

    return ArrivalStream


def _user_class(load: Load, settings: ClosedLoad) -> type[User]:
    started = 0

    class ThinkingUser(User):
        """A user of the closed loop."""

        def __init__(self, environment: Any) -> None:
            nonlocal started
            super().__init__(environment)
            self.rng = stream_rng(load.scenario.seed, load.part.index + load.part.count * started)
            started += 1

        def wait_time(self) -> float:
            return float(self.rng.exponential(settings.think_time_s)) if settings.think_time_s else 0.0

        def on_start(self) -> None:
            if not load.ordered:
                raise StopUser
            gevent.sleep(max(0.0, -load.elapsed()))

        @task
        def call(self) -> None:
            assert load.callers is not None
            call = load.callers.draw(self.rng)
            load.perform(call, load.elapsed())

    return ThinkingUser


class PhasesShape(LoadTestShape):
    """A scenario's phases as locust runs them, and their end.

    Args:
        load: The run.
    """

    def __init__(self, load: Load) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._load = load
        self._started = now()
        self._streams = 0

    def reset_time(self) -> None:
        """A new run starts."""
        self._started = now()
        self._streams = 0

    def tick(self) -> tuple[int, float] | None:
        """How many users there are now; None when the run is over."""
        scenario, elapsed = self._load.scenario, now() - self._started - LEAD_S
        if elapsed >= scenario.duration_s + _END_S:
            return None
        if isinstance(scenario.load, OpenLoad):
            # As many streams as processes when the run started: one that comes later has no part in it.
            runner: Any = self.runner
            self._streams = self._streams or (runner.worker_count if isinstance(runner, MasterRunner) else 1)
            return self._streams, _SPAWN_RATE
        # In the middle of the second that this number is for.
        level = scenario.profile.at(min(max(0.0, elapsed) + 0.5, scenario.duration_s - 1e-9))
        return max(1, round(level)), _SPAWN_RATE


def _setter(event: Event) -> Any:
    def listener(**_: object) -> None:
        event.set()

    return listener
