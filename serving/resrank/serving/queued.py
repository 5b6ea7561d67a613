"""Requests of an engine model wait in its own process, and the engine takes its batches from there.

Triton's batcher would do, but for one thing. With a queue policy, which is what bounds its queue and drops what nobody
waits for any more, Triton 2.51 does not notice the end of a batch: what waits is taken when the next request arrives,
or 0.5 s later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from resrank.core.errors import DeadlineExceededError
from resrank.core.tracing import Attributes, record_span
from resrank.serving.load_metrics import EngineMetrics, outcome_name
from resrank.serving.python_backend import PythonBackend
from resrank.serving.step import Answer, CancelledRequestError, Step, StepRequest

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Inputs of waiting requests are in shared memory, of which a container has little. A queue's bound in requests comes
first where each has a row: 128 of 1,000 candidates of 384 numbers are 94 MiB, and 20 of them 15."""


class BatchedStep(Step, Protocol):
    """A step that says how many rows it wants."""

    def batch_size(self, waiting: int) -> int:
        """Rows that its next batch should have.

        Args:
            waiting: Rows that there are, at least 1.
        """
        ...


@dataclass(frozen=True)
class _Waiting:
    request: Any
    read: StepRequest
    since: float = field(default_factory=time.monotonic)
    since_ns: int = field(default_factory=time.time_ns)

    @property
    def rows(self) -> int:
        return len(next(iter(self.read.inputs.values())))

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.read.inputs.values())


class QueuedBackend:
    """Answers an engine model's requests from a bounded queue, first come, first served.

    ``execute`` returns at once, so that Triton's queue stays empty. What finds the queue full is shed there and then.
    Every engine has a thread: it takes as many rows as the engine wants, passing over what was cancelled or has no time
    left, computes and answers them. The engine's own threads inherit that thread's niceness; the one that takes and
    sheds requests keeps its usual claim on the processor, as far as Python's lock lets it.

    Args:
        backend: Reads requests and makes responses; knows the queue's bound.
        metrics: Counts what happens; closed with this.
        make_step: Makes one engine's step, in the thread that is going to use it.
        engines: How many work side by side.

    Raises:
        Exception: What ``make_step`` raised.
    """

    def __init__(
        self, backend: PythonBackend, metrics: EngineMetrics, make_step: Callable[[], BatchedStep], *, engines: int = 1
    ) -> None:
        self._backend = backend
        self._metrics = metrics
        metrics.waiting_limit(backend.queue_bound)
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closing = False
        made: list[Future[None]] = [Future() for _ in range(engines)]
        self._threads = [
            threading.Thread(target=self._work, args=(make_step, ready), name=f"engine {number}", daemon=True)
            for number, ready in enumerate(made)
        ]
        for thread in self._threads:
            thread.start()
        try:
            for ready in made:
                ready.result()
        except BaseException:
            self.close()
            raise

    def execute(self, requests: Sequence[Any]) -> None:
        """Takes requests; the answers follow.

        Args:
            requests: ``pb_utils.InferenceRequest`` objects.
        """
        # Until they are answered: who waits for a server to be still has to know of a batch that is computed, too.
        self._metrics.under_way(len(requests))
        for request in requests:
            try:
                self._enqueue(_Waiting(request, self._backend.read(request)))
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

    def _enqueue(self, new: _Waiting) -> None:
        with self._changed:
            self._backend.refuse_above_queue_bound(len(self._waiting) + 1)
            held = sum(waiting.bytes for waiting in self._waiting)
            if self._waiting and held + new.bytes > MAX_WAITING_BYTES:
                raise self._backend.queue_full(f"{MAX_WAITING_BYTES} bytes may wait, {held} do")
            self._waiting.append(new)
            self._metrics.waiting(1)
            self._changed.notify()

    def _work(self, make_step: Callable[[], BatchedStep], ready: Future[None]) -> None:
        try:
            step = make_step()
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        serving = True
        while serving:
            try:
                serving = self._serve(step)
            except Exception:  # of a count or a span: whoever waits goes on to be answered
                logger.exception("an engine's thread goes on after an error", extra={"model": self._backend.model})

    def _serve(self, step: BatchedStep) -> bool:
        """One batch; False at the end. Its requests and their memory are let go before the next one is waited for."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return False
            rows = sum(waiting.rows for waiting in self._waiting)
        try:
            most = step.batch_size(rows)
        except Exception as error:
            for waiting in self._take(1):
                self._answer(waiting.request, error)
            return True
        if batch := self._take(most):  # else another engine was quicker, or nobody waits any more
            self._compute(step, batch)
        return True

    def _take(self, rows: int) -> list[_Waiting]:
        """The next requests of so many rows together, or one with more; those nobody waits for are passed over."""
        batch: list[_Waiting] = []
        while True:
            with self._changed:
                if not self._waiting or (batch and self._waiting[0].rows > rows):
                    return batch
                first = self._waiting.popleft()
                self._metrics.waiting(-1)
            dropped = self._unwanted(first)
            if dropped is None:
                batch.append(first)
                rows -= first.rows
            else:
                now_ns = time.time_ns()
                self._record(first, "queue", first.since_ns, now_ns, {"resrank.outcome": outcome_name(dropped)})
                self._answer(first.request, dropped)

    def _unwanted(self, waiting: _Waiting) -> Exception | None:
        """Why a request is not computed any more."""
        now, deadline = time.monotonic(), waiting.read.deadline
        if deadline is not None and now >= deadline:
            return DeadlineExceededError(f"waited {1e3 * (now - waiting.since):.0f} ms for the engine")
        try:
            return CancelledRequestError("the caller has gone") if self._backend.cancelled(waiting.request) else None
        except Exception as error:  # no more is known of the request than that it cannot be asked about
            return error

    def _compute(self, step: Step, batch: Sequence[_Waiting]) -> None:
        started = time.monotonic()
        try:
            outcomes = step.run([waiting.read for waiting in batch])
            answers = list(zip(batch, outcomes, strict=True))
        except Exception as error:
            answers = [(waiting, error) for waiting in batch]
        took = time.monotonic() - started
        rows = sum(waiting.rows for waiting in batch)
        ended_ns = time.time_ns()
        began_ns = ended_ns - int(1e9 * took)
        for waiting, outcome in answers:
            try:
                self._record(waiting, "queue", waiting.since_ns, began_ns, {})
                attributes: dict[str, str | int] = {"resrank.batch_rows": rows, "resrank.batch_requests": len(batch)}
                if isinstance(outcome, Exception):
                    attributes["resrank.outcome"] = outcome_name(outcome)
                self._record(waiting, "compute", began_ns, ended_ns, attributes)
            finally:
                self._answer(waiting.request, outcome)
        self._metrics.batch(
            rows,
            sum(started - waiting.since for waiting in batch),
            took * len(batch),
        )

    def _record(self, waiting: _Waiting, part: str, began_ns: int, ended_ns: int, attributes: Attributes) -> None:
        if waiting.read.trace is not None:
            record_span(
                f"{self._backend.model} {part}",
                began_ns,
                ended_ns,
                context=waiting.read.trace.context,
                attributes=attributes,
            )

    def _answer(self, request: Any, outcome: Answer) -> None:
        try:
            self._metrics.ended(self._backend.send(request, outcome))
        finally:
            self._metrics.under_way(-1)
