"""Runs a repository's engine as its model would, each in a process of its own, and times it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import DataType

from resrank.errors import StackError
from resrank.names import VERSION, Model, Parameter, Tensor
from resrank.serving.engine_host import EncoderGraph, EngineStep, RerankerGraph
from resrank.serving.python_backend import ModelInstance
from resrank.serving.step import Arrays, StepRequest
from resrank_export.warmup import WARMUP_FOLDER
from resrank_stack.tuning.choice import Sample, Setting
from resrank_stack.tuning.repository import read_config

SECONDS = 2.0
"""Of calls in one measurement, after two that are not timed; at least two are."""

_LEAST_CALLS = 2
_START_S = 300.0
_NUMBERS: dict[int, Any] = {DataType.TYPE_INT64: np.int64, DataType.TYPE_FP16: np.float16}


class Trials:
    """Measures settings of one model; engines that were made stay until the end.

    Args:
        repository: Model repository as ``resrank export`` writes it, for a CPU.
        model: ``encoder`` or ``reranker``.

    Raises:
        StackError: A config or a warm-up sample is missing.
    """

    def __init__(self, repository: Path, model: Model) -> None:
        self._repository = repository
        self._model = model
        self._sample = _sample(repository, model)
        self._engines: dict[tuple[int, int], list[_Engine]] = {}
        self._lone_ms: dict[int, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for engines in self._engines.values():
            for engine in engines:
                engine.close()

    def measure(self, setting: Setting) -> Sample:
        """Measures all engines of a setting at the same time, and before that one row by one of them.

        Raises:
            StackError: An engine cannot be made or fails.
        """
        engines = self._made(setting)
        if setting.threads not in self._lone_ms:
            engines[0].begin(1, SECONDS / 2)
            self._lone_ms[setting.threads] = 1e3 / engines[0].end()
        for engine in engines:
            engine.begin(setting.rows, SECONDS)
        return Sample(sum(engine.end() for engine in engines), self._lone_ms[setting.threads])

    def _made(self, setting: Setting) -> list[_Engine]:
        engines = self._engines.setdefault((setting.engines, setting.threads), [])
        while len(engines) < setting.engines:
            engines.append(_Engine(self._repository, self._model, setting.threads, self._sample))
        for engine in engines:
            engine.wait()
        return engines


class _Engine:
    """One engine in a process of its own."""

    def __init__(self, repository: Path, model: Model, threads: int, sample: Arrays) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._name = f"{model.value} with {threads} threads"
        self._process = context.Process(target=_work, args=(theirs, repository, model, threads, sample), daemon=True)
        self._process.start()
        theirs.close()  # so that its death ends what is read here
        self._ready = False

    def wait(self) -> None:
        """Returns when the engine is made."""
        if not self._ready:
            self._receive()
            self._ready = True

    def begin(self, rows: int, seconds: float) -> None:
        """Starts a measurement."""
        self._ours.send((rows, seconds))

    def end(self) -> float:
        """Waits for the measurement's end; rows a second."""
        return float(self._receive())

    def close(self) -> None:
        """Ends the process."""
        self._ours.close()
        self._process.terminate()
        self._process.join()
        self._process.close()

    def _receive(self) -> Any:
        if not self._ours.poll(_START_S):
            raise StackError(f"the {self._name} has not answered for {_START_S:.0f} s")
        try:
            found = self._ours.recv()
        except EOFError:
            self._process.join()
            raise StackError(f"the {self._name} died with exit code {self._process.exitcode}") from None
        if isinstance(found, Exception):
            raise StackError(f"the {self._name} failed: {found}") from found
        return found


def _work(commands: Connection, repository: Path, model: Model, threads: int, sample: Arrays) -> None:
    """In the engine's process: makes it, then times calls until the other side goes."""
    with _reported(commands):
        config = read_config(repository, model)
        parameters = {name: value.string_value for name, value in config.parameters.items()}
        instance = ModelInstance(
            repository / model / VERSION,
            {**parameters, Parameter.THREADS: str(threads)},
            config.max_batch_size,
            None,
        )
        step = EngineStep.load(instance, EncoderGraph() if model is Model.ENCODER else RerankerGraph())
        commands.send(None)
        while True:
            rows, seconds = commands.recv()
            commands.send(_rows_per_s(step, sample, rows, seconds))


def _rows_per_s(step: EngineStep, sample: Arrays, rows: int, seconds: float) -> float:
    requests = [StepRequest({name: array[None] for name, array in sample.items()})] * rows
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
    except (EOFError, BrokenPipeError):  # the other side is done
        pass
    except Exception as error:
        commands.send(StackError(str(error)))


def _sample(repository: Path, model: Model) -> Arrays:
    """The repository's own warm-up sample: one row, without the batch dimension."""
    config = read_config(repository, model)
    if not config.model_warmup:
        raise StackError(f"{repository}: the config of {model.value} has no warm-up sample to measure with")
    sample: dict[Tensor, NDArray[Any]] = {}
    for name, entry in config.model_warmup[0].inputs.items():
        file = repository / model / WARMUP_FOLDER / entry.input_data_file
        try:
            sample[Tensor(name)] = np.fromfile(file, _NUMBERS[entry.data_type]).reshape(tuple(entry.dims))
        except (OSError, ValueError, KeyError) as error:
            raise StackError(
                f"{file} is not the warm-up sample that the config of {model.value} names: {error}"
            ) from error
    return sample
