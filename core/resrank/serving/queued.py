"""Requests of an engine model wait in its own process, and the engine takes its batches from there.

Triton's batcher would do, but for one thing. With a queue policy, which is what bounds its queue and drops what nobody
waits for any more, Triton 2.51 does not notice the end of a batch: what waits is taken when the next request arrives,
or 0.5 s later.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from resrank.errors import DeadlineExceededError
from resrank.serving.load_metrics import LoadMetrics
from resrank.serving.python_backend import PythonBackend
from resrank.serving.step import CancelledRequestError, Outcome, Step, StepRequest


class BatchedStep(Step, Protocol):
    """A step that says how many rows it wants."""

    def rows_at_once(self, waiting: int) -> int:
        """Rows that its next batch should have.

        Args:
            waiting: Rows that there are, at least 1.
        """
        ...


@dataclass(frozen=True)
class _Waiting:
    request: Any
    read: StepRequest
    rows: int
    since: float = field(default_factory=time.monotonic)


class QueuedBackend:
    """Answers an engine model's requests from a bounded queue, first come, first served.

    ``execute`` returns at once, so that Triton's queue stays empty. What finds the queue full is shed there and then.
    Every engine has a thread: it drops what was cancelled or has no time left, takes as many rows as the engine wants,
    computes and answers them. The engine's own threads inherit that thread's niceness; the one that takes and sheds
    requests keeps its usual claim on the processor.

    Args:
        backend: Reads requests and makes responses; knows the queue's bound.
        metrics: Counts what happens.
        make_step: Makes one engine's step, in the thread that is going to use it.
        engines: How many work side by side.

    Raises:
        Exception: What ``make_step`` raised.
    """

    def __init__(
        self, backend: PythonBackend, metrics: LoadMetrics, make_step: Callable[[], BatchedStep], *, engines: int = 1
    ) -> None:
        self._backend = backend
        self._metrics = metrics
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._threads: list[threading.Thread] = []
        for number in range(engines):
            ready: Future[None] = Future()
            thread = threading.Thread(target=self._work, args=(make_step, ready), name=f"engine {number}", daemon=True)
            thread.start()
            self._threads.append(thread)
            ready.result()  # one after the other: each takes the machine's memory while it is made

    def execute(self, requests: Sequence[Any]) -> None:
        """Takes requests; the answers follow.

        Args:
            requests: ``pb_utils.InferenceRequest`` objects.
        """
        for request in requests:
            try:
                self._enqueue(request)
            except Exception as error:
                self._answer(request, error)

    def close(self) -> None:
        """Ends when all that waits is answered."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._metrics.close()

    def _enqueue(self, request: Any) -> None:
        read = self._backend.read(request)
        waiting = _Waiting(request, read, len(next(iter(read.inputs.values()))))
        with self._changed:
            self._backend.refuse_above_queue_bound(len(self._waiting) + 1)
            self._waiting.append(waiting)
            self._changed.notify()
        self._metrics.waiting(1)

    def _work(self, make_step: Callable[[], BatchedStep], ready: Future[None]) -> None:
        try:
            step = make_step()
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        while (taken := self._take(step)) is not None:
            if batch := self._wanted(taken):
                self._compute(step, batch)

    def _take(self, step: BatchedStep) -> list[_Waiting] | None:
        """Waits for requests and takes the next batch; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            rows = step.rows_at_once(sum(waiting.rows for waiting in self._waiting))
            taken = [self._waiting.popleft()]  # whatever its size: it was accepted
            rows -= taken[0].rows
            while self._waiting and self._waiting[0].rows <= rows:
                taken.append(self._waiting.popleft())
                rows -= taken[-1].rows
        self._metrics.waiting(-len(taken))
        return taken

    def _wanted(self, taken: Sequence[_Waiting]) -> list[_Waiting]:
        """Those that somebody still waits for; the others are answered."""
        wanted = []
        now = time.monotonic()
        for waiting in taken:
            deadline = waiting.read.deadline
            if deadline is not None and now >= deadline:
                waited = f"waited {1e3 * (now - waiting.since):.0f} ms for the engine"
                self._answer(waiting.request, DeadlineExceededError(waited))
            elif self._backend.cancelled(waiting.request):
                self._answer(waiting.request, CancelledRequestError("the caller has gone"))
            else:
                wanted.append(waiting)
        return wanted

    def _compute(self, step: Step, batch: Sequence[_Waiting]) -> None:
        started = time.monotonic()
        try:
            outcomes = step.run([waiting.read for waiting in batch])
        except Exception as error:
            outcomes = [error] * len(batch)
        took = time.monotonic() - started
        for waiting, outcome in zip(batch, outcomes, strict=True):
            self._answer(waiting.request, outcome)
        self._metrics.batch(
            sum(waiting.rows for waiting in batch),
            sum(started - waiting.since for waiting in batch),
            took * len(batch),
        )

    def _answer(self, request: Any, outcome: Outcome) -> None:
        self._metrics.ended(self._backend.send(request, outcome))
