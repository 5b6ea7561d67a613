"""A queue holds what is answered in time, and never less than the next batch."""

from __future__ import annotations

import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from resrank.core.names import Model
from resrank.export.queue_bounds import bound_queues, queue_size


@pytest.mark.parametrize(
    ("row_ms", "most", "expected"),
    [(100.0, 128, 10), (95.0, 128, 10), (5.0, 128, 128), (330.0, 128, 4), (60_000.0, 128, 4), (60_000.0, 3, 3)],
)
def test_size(row_ms: float, most: int, expected: int) -> None:
    assert queue_size(row_ms, most=most) == expected


def test_a_model_that_was_not_measured_keeps_its_bound() -> None:
    configs = {model: ModelConfig() for model in (Model.ENCODER, Model.RERANKER, Model.RERANK_TEXT)}
    for config in configs.values():
        config.parameters["max_queue_size"].string_value = "128"
    bound_queues(configs, {Model.RERANKER: 200.0})
    sizes = {model: config.parameters["max_queue_size"].string_value for model, config in configs.items()}
    assert sizes == {Model.ENCODER: "128", Model.RERANKER: "5", Model.RERANK_TEXT: "128"}
    assert not configs[Model.RERANKER].HasField("dynamic_batching")


def test_where_triton_keeps_the_queue_its_policy_is_bounded() -> None:
    config = ModelConfig()
    config.dynamic_batching.default_queue_policy.max_queue_size = 128
    bound_queues({Model.RERANKER: config}, {Model.RERANKER: 200.0})
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 5
    assert not config.parameters
