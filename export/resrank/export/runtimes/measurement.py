"""How near an engine that runs here comes to the reference, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from resrank.core.errors import ParityError
from resrank.core.names import Model, Tensor
from resrank.export.parity import ParityGate, parity_table
from resrank.export.runtimes.base import EngineChoice
from resrank.serving.engines import Engine, EngineOptions
from resrank.serving.engines.base import EngineError

_TIMED_RUNS = 7
_FEWEST_RUNS = 3
_ENOUGH_S = 1.0
"""Timed runs of one engine, after which no more than the fewest are made: a long pass is disturbed less."""


def measure(gate: ParityGate, model: Model, engine: Engine, options: EngineOptions) -> EngineChoice:
    """Holds an engine against the reference and times it.

    Args:
        gate: The reference's answers.
        model: ``encoder`` or ``reranker``.
        engine: Of that model.
        options: What the engine was made with.

    Raises:
        EngineError: It fails while it runs.
    """
    engine = _Tried(engine, options)
    if model is Model.ENCODER:
        parity = gate.check_encoder(engine, options)
        inputs = gate.encoder_case.inputs
        rows = len(inputs[Tensor.INPUT_IDS])
        return EngineChoice(parity, options.kind.value, _latency_ms(engine, inputs), rows)
    parity = gate.check_reranker(engine, options)
    first_row = {tensor: array[:1] for tensor, array in gate.reranker_case.inputs.items()}
    return EngineChoice(parity, options.kind.value, _latency_ms(engine, first_row))


@dataclass(frozen=True)
class _Tried:
    """An engine whose failure is no other engine's."""

    engine: Engine
    options: EngineOptions

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Computes all outputs (see the protocol)."""
        try:
            return self.engine.run(inputs)
        except Exception as error:  # engines' exceptions share no base class
            shape = list(inputs[Tensor.INPUT_IDS].shape)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            name = f"{self.options.kind.value} {self.options.precision.value}"
            raise EngineError(f"{name} loads the graph and fails on ids of shape {shape}: {reason}") from error


def parity_failure(model: Model, tried: Iterable[EngineChoice]) -> ParityError:
    """What to raise when no engine of a model is within tolerance.

    Args:
        model: ``encoder`` or ``reranker``.
        tried: Engines of any model.
    """
    table = parity_table([choice.parity for choice in tried if choice.parity.model is model])
    return ParityError(f"no engine computes the {model.value} as the torch reference does:\n{table}")


def _latency_ms(engine: Engine, inputs: Mapping[str, NDArray[Any]]) -> float:
    times: list[float] = []
    while len(times) < _TIMED_RUNS and (len(times) < _FEWEST_RUNS or sum(times) < _ENOUGH_S):
        start = time.perf_counter()
        engine.run(inputs)
        times.append(time.perf_counter() - start)
    return min(times) * 1e3  # the run least disturbed by whatever else the machine does
