"""Answers each request when it is done, however long its neighbours take.

A model that calls other models waits most of its time. If ``execute`` waited with it, nobody who comes meanwhile would
be served: Triton gives an instance its next batch when the last one's ``execute`` has returned. Here it returns at
once, and the answers follow through each request's response sender, which models of every kind have since Triton's
python_backend took its pull request 364 (2024).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from resrank.serving.load_metrics import CallerMetrics
from resrank.serving.python_backend import PythonBackend
from resrank.serving.step import Answer, Arrays, StepRequest

_CALL_THREADS = 256
"""A call to another model occupies a thread of the event loop until it is answered. Idle threads are used again, so
this many exist only when this many calls are under way."""


class RequestStep(Protocol):
    """One model's logic that awaits other models."""

    async def answer(self, request: StepRequest) -> Arrays:
        """Computes one request.

        Returns:
            Its outputs.

        Raises:
            ResRankError: What the caller is told.
        """
        ...


class DeferredBackend:
    """Runs a step for every request of one model instance, all at the same time, in an event loop of its own thread.

    Since nothing waits long in Triton's queue, the bound is kept here: requests under way beyond it are shed.

    Args:
        backend: Reads requests and makes responses; knows the bound.
        metrics: Counts what happens.
        step: The model's logic.
    """

    def __init__(self, backend: PythonBackend, metrics: CallerMetrics, step: RequestStep) -> None:
        self._backend = backend
        self._metrics = metrics
        self._step = step
        self._under_way = 0
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_CALL_THREADS, "call"))
        self._thread = threading.Thread(target=self._loop.run_forever, name="requests", daemon=True)
        self._thread.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Takes one batch; the answers follow.

        Args:
            requests: ``pb_utils.InferenceRequest`` objects.
        """
        for request in requests:
            asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)

    def close(self) -> None:
        """Ends the loop. Triton calls ``finalize`` when every request is answered."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._metrics.close()

    async def _answer(self, request: Any) -> None:
        self._under_way += 1
        self._metrics.under_way(1)
        try:
            outcome = await self._outcome(request)
        except BaseException as error:  # also a cancellation, which no caller would ever hear of
            outcome = error if isinstance(error, Exception) else RuntimeError(repr(error))
        finally:
            self._under_way -= 1
            self._metrics.under_way(-1)
        self._metrics.ended(self._backend.send(request, outcome))

    async def _outcome(self, request: Any) -> Answer:
        self._backend.refuse_above_queue_bound(self._under_way)
        return await self._step.answer(self._backend.read(request))
