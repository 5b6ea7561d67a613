"""What Triton says about where a request's time went, between two moments."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from resrank.benchmarks.measurement import BenchmarkError
from resrank.core.checkpoint import CheckpointSpec
from resrank.core.names import Model
from resrank.export.rerank_chain import rerank_steps, steps_behind_encoding
from resrank.loadtest.server_metrics import ModelCounters, read_metrics
from resrank.serving.load_metrics import PUBLISH_EVERY_S


@dataclass(frozen=True)
class ModelTime:
    """Time that requests spent in one model, in milliseconds together.

    Attributes:
        requests: Answered ones.
        total: From acceptance to answer, as Triton saw it; of an ensemble all its steps and what lies between them.
        queue: Waiting for the engine, or for Triton to hand the request over.
        compute: Inputs, inference and outputs in an instance; 0 for an ensemble, which computes nothing itself.
    """

    requests: int
    total: float
    queue: float
    compute: float

    def since(self, before: ModelTime) -> ModelTime:
        """What was added since an earlier reading."""
        return ModelTime(
            self.requests - before.requests,
            self.total - before.total,
            self.queue - before.queue,
            self.compute - before.compute,
        )


def read_times(metrics_url: str) -> dict[Model, ModelTime]:
    """Reads what all models have done since the server's start.

    Args:
        metrics_url: Triton's metrics page, on which also the engine models publish their own figures.

    Raises:
        BenchmarkError: It cannot be read.
    """
    time.sleep(2 * PUBLISH_EVERY_S)
    try:
        return model_times(read_metrics(metrics_url, timeout_s=_TIMEOUT_S))
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{metrics_url} cannot be read: {error}") from error


def model_times(counters: Mapping[str, ModelCounters]) -> dict[Model, ModelTime]:
    """Makes times of counters."""
    return {
        Model(name): ModelTime(
            int(model.requests),
            (model.total_us or 0.0) / 1e3,
            (model.queue_us or 0.0) / 1e3,
            # An ensemble repeats its steps' figures.
            0.0 if name in _ENSEMBLES else (model.compute_us or 0.0) / 1e3,
        )
        for name, model in counters.items()
    }


def steps_of(model: Model, spec: CheckpointSpec) -> tuple[Model, ...]:
    """The steps of an ensemble.

    Args:
        model: ``embed_query``, ``rerank`` or ``rerank_embedded``.
        spec: The checkpoint's fields, from which those of ``rerank`` follow.

    Raises:
        BenchmarkError: It is no ensemble that is known here.
    """
    if model is Model.EMBED_QUERY:
        return (Model.QUERY_TOKENIZER, Model.ENCODER)
    if model is Model.RERANK:
        return tuple(step.model for step in rerank_steps(spec))
    if model is Model.RERANK_EMBEDDED:
        return tuple(step.model for step in steps_behind_encoding(spec))
    raise BenchmarkError(f"the steps of {model.value} are not known to the benchmarks")


_ENSEMBLES = {
    each.value
    for each in (Model.EMBED_PASSAGE, Model.EMBED_QUERY, Model.EMBED_BULK, Model.RERANK, Model.RERANK_EMBEDDED)
}

_TIMEOUT_S = 10.0
