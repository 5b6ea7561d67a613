"""How an engine model takes its requests: from a queue of its own in a CPU repository, from Triton's in a GPU one.

Triton's queue knows priorities, which one encoder for all needs, and its TensorRT backend has no other. It stands still
at times (see :mod:`resrank.serving.queued`), the less the more often requests come.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from resrank.core.names import Parameter
from resrank.serving.engine_host import EngineStep, Graph
from resrank.serving.load_metrics import EngineMetrics
from resrank.serving.python_backend import ModelInstance, PythonBackend
from resrank.serving.queued import QueuedBackend
from resrank.serving.step import StepRequest
from resrank.serving.warmup_samples import warmup_requests


class EngineBackend(Protocol):
    """What Triton's Python model of an engine hands everything to."""

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answers a batch of ``pb_utils.InferenceRequest`` objects, or takes it and answers later (None)."""
        ...

    def close(self) -> None:
        """Ends when all is answered."""
        ...


class BatchBackend:
    """Computes what Triton's batcher joined before it returns.

    Args:
        backend: Reads requests and makes responses.
        step: The engine's.
    """

    def __init__(self, backend: PythonBackend, step: EngineStep) -> None:
        self._backend = backend
        self._step = step

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers one batch (see the protocol)."""
        return self._backend.execute(self._step, requests)

    def close(self) -> None:
        """Nothing is under way."""


def open_backend(pb_utils: Any, args: Mapping[str, str], graph: Graph) -> EngineBackend:
    """Makes an engine model ready.

    Args:
        pb_utils: The module ``triton_python_backend_utils``, which exists inside Triton only.
        args: What Triton gives to ``initialize``.
        graph: What the engine computes.

    Raises:
        EngineError: The engine is not installed, or refuses its files or the machine.
        CheckpointError: Torch's files are damaged.
    """
    backend, instance = PythonBackend(pb_utils, args), ModelInstance.from_args(args)
    if Parameter.MAX_QUEUE_SIZE not in instance.parameters:
        return BatchBackend(backend, EngineStep.load(instance, graph))
    engines = int(instance.parameters.get(Parameter.ENGINES, 1))
    # Triton warms the model, and with it one engine: whichever is free.
    samples = warmup_requests(instance.folder.parent, json.loads(args["model_config"])) if engines > 1 else []
    load = partial(_load_warm, instance, graph, samples)
    return QueuedBackend(backend, EngineMetrics(pb_utils, args["model_name"]), load, engines=engines)


def _load_warm(instance: ModelInstance, graph: Graph, samples: Sequence[StepRequest]) -> EngineStep:
    step = EngineStep.load(instance, graph)
    for outcome in step.run(samples):
        if isinstance(outcome, Exception):
            raise outcome
    return step
