"""How many requests may wait in front of a model: as many as it answers within a stated time."""

from __future__ import annotations

from collections.abc import Mapping

from tritonclient.grpc.model_config_pb2 import ModelConfig

from resrank.core.names import Model, Parameter

WAIT_S = 1.0
"""Longest wait in a queue, beside the batch under way and the request's own. People leave a search that takes longer
than some seconds, and what waits longer than its caller is computed for nobody. When a burst ends, the queue is worked
off by what arrivals leave of the engine: in two seconds if that is half of it."""

LEAST_WAITING = 4
"""Room for the batch that follows the one under way, however slow a model is: with fewer requests waiting batches would
be smaller than the engine takes (``batch_rows`` of the reranker's config). The client sends as many blocks at once."""

LEAST_UNDER_WAY = 2 * LEAST_WAITING
"""Likewise where those that are computed count, too."""

_CANDIDATES = 100  # the usual first pass, of which `rerank_text` encodes the texts


def queue_size(row_ms: float, *, most: int, least: int = LEAST_WAITING) -> int:
    """Requests that may wait.

    Args:
        row_ms: What one request costs, in milliseconds.
        most: What the model's template allows; no queue is longer.
        least: No queue is shorter than this, unless the template's is.
    """
    return min(most, max(least, int(1e3 * WAIT_S / row_ms)))


def bound_queues(configs: Mapping[Model, ModelConfig], row_ms: Mapping[Model, float]) -> None:
    """Bounds the queues of the engines and of ``rerank_text``, which runs both, in place.

    Args:
        configs: Of every model.
        row_ms: Milliseconds of one row of ``encoder`` and ``reranker``, as measured; a model that is not in it keeps
            the bound of its template.
    """
    costs = dict(row_ms)
    if Model.ENCODER in row_ms and Model.RERANKER in row_ms:
        costs[Model.RERANK_TEXT] = _CANDIDATES * row_ms[Model.ENCODER] + row_ms[Model.RERANKER]
    for model, cost in costs.items():
        config = configs[model]
        least = LEAST_UNDER_WAY if model is Model.RERANK_TEXT else LEAST_WAITING
        if Parameter.MAX_QUEUE_SIZE in config.parameters:  # the queue in the model's own process
            bound = config.parameters[Parameter.MAX_QUEUE_SIZE.value]
            bound.string_value = str(queue_size(cost, most=int(bound.string_value), least=least))
        else:
            policy = config.dynamic_batching.default_queue_policy
            policy.max_queue_size = queue_size(cost, most=policy.max_queue_size, least=least)
