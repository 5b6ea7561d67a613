"""Runs a repository's engines as their model would, side by side in one process, and times them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from google.protobuf.json_format import MessageToDict

from resrank.core.errors import StackError
from resrank.core.names import VERSION, Model, Parameter
from resrank.serving.engine_host import EncoderGraph, EngineStep, RerankerGraph
from resrank.serving.python_backend import ModelInstance
from resrank.serving.step import StepRequest
from resrank.serving.warmup_samples import warmup_requests
from resrank.stack.answering_process import AnsweringProcess
from resrank.stack.tuning.choice import Sample, Setting
from resrank.stack.tuning.repository import read_config

SECONDS = 2.0
"""Of calls in one measurement, after two that are not timed; at least two are."""

_LEAST_CALLS = 2
_ANSWER_S = 300.0


class Trials:
    """Measures settings of one model; what was made stays until the end.

    Args:
        repository: Model repository as ``resrank export`` writes it, for a CPU.
        model: ``encoder`` or ``reranker``.
    """

    def __init__(self, repository: Path, model: Model) -> None:
        self._repository = repository
        self._model = model
        self._processes: dict[tuple[int, int], _Process] = {}
        self._lone_ms: dict[int, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.close()

    def measure(self, setting: Setting) -> Sample:
        """Measures all engines of a setting at the same time, and before that one row by one of them.

        Raises:
            StackError: A config or a warm-up sample is missing, or an engine cannot be made or fails.
        """
        key = (setting.engines, setting.threads)
        if key not in self._processes:
            self._processes[key] = _Process(self._repository, self._model, *key)
        process = self._processes[key]
        if setting.threads not in self._lone_ms:
            self._lone_ms[setting.threads] = 1e3 / process.rows_per_s(1, SECONDS / 2, engines=1)
        return Sample(process.rows_per_s(setting.rows, SECONDS), self._lone_ms[setting.threads])


class _Process:
    """The engines of one setting, each used by a thread of its own."""

    def __init__(self, repository: Path, model: Model, engines: int, threads: int) -> None:
        self._engines = engines
        self._child = AnsweringProcess(
            f"the {model.value} with {threads} threads", _work, repository, model, engines, threads
        )
        try:
            self._receive()  # they are made
        except BaseException:
            self.close()
            raise

    def rows_per_s(self, rows: int, seconds: float, *, engines: int | None = None) -> float:
        """Measures.

        Args:
            rows: In one call.
            seconds: Of calls, after two that are not timed; at least two are.
            engines: How many work at the same time; all when None.

        Returns:
            Rows a second of all of them together.
        """
        self._child.send((rows, seconds, engines or self._engines))
        return float(self._receive())

    def close(self) -> None:
        """Ends the process."""
        self._child.close()

    def _receive(self) -> Any:
        found = self._child.receive(_ANSWER_S)
        if isinstance(found, Exception):
            raise StackError(f"{self._child.name} failed: {found}") from found
        return found


def _work(commands: Connection, repository: Path, model: Model, engines: int, threads: int) -> None:
    """In the process of the engines: makes them, then times calls until the other side goes."""
    with _reported(commands):
        sample = _sample(repository, model)
        config = read_config(repository, model)
        parameters = {name: value.string_value for name, value in config.parameters.items()}
        instance = ModelInstance(
            repository / model / VERSION,
            {**parameters, Parameter.THREADS: str(threads), Parameter.NICENESS: "0"},
            config.max_batch_size,
            None,
        )
        graph = EncoderGraph() if model is Model.ENCODER else RerankerGraph()
        steps = [EngineStep.load(instance, graph) for _ in range(engines)]
        commands.send(None)
        with ThreadPoolExecutor(engines) as pool:
            while True:
                rows, seconds, busy = commands.recv()
                timed = [pool.submit(_rows_per_s, step, sample, rows, seconds) for step in steps[:busy]]
                commands.send(sum(each.result() for each in timed))


def _rows_per_s(step: EngineStep, sample: StepRequest, rows: int, seconds: float) -> float:
    requests = [sample] * rows
    calls, started = -2, 0.0  # the first sight of a shape costs extra
    while calls < _LEAST_CALLS or time.perf_counter() - started < seconds:
        if calls == 0:
            started = time.perf_counter()
        for outcome in step.run(requests):
            if isinstance(outcome, Exception):
                raise outcome
        calls += 1
    return calls * rows / (time.perf_counter() - started)


@contextmanager
def _reported(commands: Connection) -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):  # the other side is done
        raise
    except Exception as error:
        commands.send(StackError(str(error)))


def _sample(repository: Path, model: Model) -> StepRequest:
    """The repository's own warm-up sample."""
    config = MessageToDict(read_config(repository, model), preserving_proto_field_name=True)
    try:
        samples = warmup_requests(repository / model, config)
    except ValueError as error:
        raise StackError(str(error)) from error
    if not samples:
        raise StackError(f"{repository}: the config of {model.value} has no warm-up sample to measure with")
    return samples[0]
