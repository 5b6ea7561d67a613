"""What Triton says about where a request's time went, between two moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resrank.names import Model
from resrank_benchmarks.measurement import BenchmarkError


@dataclass(frozen=True)
class ModelTime:
    """Time that requests spent in one model, in milliseconds together.

    Attributes:
        requests: Answered ones.
        total: From acceptance to answer; of an ensemble all its steps and what lies between them.
        queue: Waiting for an instance.
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


def read_times(client: Any) -> dict[Model, ModelTime]:
    """Reads the statistics of all models.

    Args:
        client: ``tritonclient.grpc.InferenceServerClient``.
    """
    statistics = client.get_inference_statistics(as_json=True)
    return model_times(statistics)


def model_times(statistics: Mapping[str, Any]) -> dict[Model, ModelTime]:
    """Reads an answer of Triton's statistics API.

    Args:
        statistics: ``ModelStatisticsResponse`` as JSON, in which fields that are 0 are missing.

    Returns:
        Model to the times since the server started.
    """
    times = {}
    for model in statistics.get("model_stats", ()):
        stats = model.get("inference_stats", {})
        compute = sum(_nanoseconds(stats, part) for part in ("compute_input", "compute_infer", "compute_output"))
        times[Model(model["name"])] = ModelTime(
            int(stats.get("success", {}).get("count", 0)),
            _nanoseconds(stats, "success") / 1e6,
            _nanoseconds(stats, "queue") / 1e6,
            # An ensemble repeats its steps' figures.
            0.0 if model["name"] in _ENSEMBLES else compute / 1e6,
        )
    return times


def steps_of(model: Model, *, query_residual: bool) -> tuple[Model, ...]:
    """The steps of an ensemble.

    Args:
        model: ``embed_query`` or ``rerank``.
        query_residual: Whether the checkpoint's scores need the query's vector, so that ``rerank`` encodes it.

    Raises:
        BenchmarkError: It is no ensemble that is known here.
    """
    encoding = (Model.QUERY_TOKENIZER, Model.ENCODER)
    reranking = (Model.RERANK_PROMPT, Model.RERANKER)
    if model is Model.EMBED_QUERY:
        return encoding
    if model is Model.RERANK:
        return (*reranking, *(encoding if query_residual else ()), Model.RESIDUAL_SCORING)
    raise BenchmarkError(f"the steps of {model.value} are not known to the benchmarks")


_ENSEMBLES = {each.value for each in (Model.EMBED_PASSAGE, Model.EMBED_QUERY, Model.EMBED_BULK, Model.RERANK)}


def _nanoseconds(stats: Mapping[str, Any], part: str) -> int:
    return int(stats.get(part, {}).get("ns", 0))
