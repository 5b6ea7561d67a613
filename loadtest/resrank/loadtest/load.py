"""One run of a scenario: its clock, its recording, and what every call goes through."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resrank.core.outcomes import Outcome, outcome_of
from resrank.loadtest.recording import Recording
from resrank.loadtest.scenario import Scenario

if TYPE_CHECKING:
    from locust.env import Environment

    from resrank.loadtest.callers import Callers, DrawnCall

LEAD_S = 1.0
"""Between the order to start and the first arrival: every worker has the order by then."""

# Wall-clock time that no correction of the clock makes jump, so that processes of one machine share it.
_OFFSET = time.time() - time.perf_counter()


def now() -> float:
    """Seconds since the epoch, by a clock that only goes forward."""
    return time.perf_counter() + _OFFSET


class NotOkError(Exception):
    """How locust's own tables name a call that did not end well: by its outcome alone, so that they stay short."""


@dataclass(frozen=True)
class Part:
    """What one process does of a run.

    Attributes:
        index: Of the process, from 0.
        count: How many processes make the load together.
        epoch: When the run starts, in seconds since the epoch.
    """

    index: int
    count: int
    epoch: float


class Load:
    """One run in one process.

    Args:
        scenario: What runs.
        callers: Makes the calls; None in a master, which makes none.
        environment: Is told of every call.

    Attributes:
        recording: What was called since the run began.
        part: What this process does of the run.
        ordered: Whether it has a part in it at all: a worker that comes while a run lasts has none.
    """

    def __init__(self, scenario: Scenario, callers: Callers | None, environment: Environment) -> None:
        self.scenario = scenario
        self.callers = callers
        self.environment = environment
        self.recording = Recording()
        self.part = Part(0, 1, now())
        self.ordered = False

    def begin(self, part: Part) -> None:
        """Starts over, with nothing recorded."""
        self.part = part
        self.ordered = True
        self.recording = Recording()

    def elapsed(self) -> float:
        """Seconds since the run's start; below 0 before it."""
        return now() - self.part.epoch

    def perform(self, call: DrawnCall, start: float) -> None:
        """Makes a call, records how it ended and tells locust.

        Its budget counts from the moment at which it should have started. A call whose time is over before it can be
        sent is not sent.

        Args:
            call: What to do.
            start: When it should have started, in seconds from the run's start.
        """
        sent = self.elapsed()
        budget = self.scenario.deadline_s - (sent - start)
        outcome, message = Outcome.OK, ""
        if budget <= 0:
            self.recording.unsent += 1
            outcome, message = Outcome.DEADLINE, "the deadline passed before the call could be sent"
        else:
            try:
                call.make(budget)
            except Exception as error:  # an unexpected one is an outcome, too: the load goes on
                outcome, message = outcome_of(error), f"{type(error).__name__}: {error}"
        end = self.elapsed()
        self.recording.add(call.kind, outcome, start=start, sent=sent, end=end, message=message)
        events: Any = self.environment.events  # its hooks are not typed
        events.request.fire(
            request_type="grpc",
            name=call.kind.value,
            response_time=(end - start) * 1e3,
            response_length=0,
            exception=None if outcome is Outcome.OK else NotOkError(outcome.value),
            context={"outcome": outcome.value},
        )
