"""The steps of ``rerank``, whose order follows from when a checkpoint needs the query's vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from resrank.checkpoint import CheckpointSpec
from resrank.names import Model, Tensor

_ENCODING = (Model.QUERY_TOKENIZER, Model.ENCODER)


def order_rerank(configs: Mapping[Model, ModelConfig], spec: CheckpointSpec) -> None:
    """Makes the template's chain the checkpoint's, in place.

    The template encodes the query after the reranker's pass, for the residual alone: nothing but a prompt has been paid
    for when the reranker's queue is full. With ``query_slot`` the prompt holds the vector, so it comes first. Without
    ``query_residual`` there is none.

    Args:
        configs: Of every model, as the templates have them.
        spec: The checkpoint's fields.
    """
    if spec.reranker.query_slot:
        _encode_first(configs)
    elif not spec.fusion.query_residual:
        _encode_never(configs)


def _encode_first(configs: Mapping[Model, ModelConfig]) -> None:
    _release_query_tokenizer(configs)
    configs[Model.RERANK_PROMPT].input.add(name=Tensor.QUERY_EMBEDDING, data_type=DataType.TYPE_FP32, dims=[-1])
    steps = configs[Model.RERANK].ensemble_scheduling.step
    ordered = sorted(steps, key=lambda step: step.model_name not in _ENCODING)
    for step in ordered:
        if step.model_name == Model.RERANK_PROMPT:
            step.input_map[Tensor.QUERY_EMBEDDING] = Tensor.QUERY_EMBEDDING
    _replace(steps, ordered)


def _encode_never(configs: Mapping[Model, ModelConfig]) -> None:
    _release_query_tokenizer(configs)
    scoring = configs[Model.RESIDUAL_SCORING]
    _replace(scoring.input, [tensor for tensor in scoring.input if tensor.name != Tensor.QUERY_EMBEDDING])
    steps = configs[Model.RERANK].ensemble_scheduling.step
    _replace(steps, [step for step in steps if step.model_name not in _ENCODING])
    for step in steps:
        step.input_map.pop(Tensor.QUERY_EMBEDDING, None)


def _release_query_tokenizer(configs: Mapping[Model, ModelConfig]) -> None:
    """Takes out what makes it wait for the reranker."""
    tokenizer = configs[Model.QUERY_TOKENIZER]
    _replace(tokenizer.input, [tensor for tensor in tokenizer.input if tensor.name != Tensor.QUERY_STATE])
    for step in configs[Model.RERANK].ensemble_scheduling.step:
        if step.model_name == Model.QUERY_TOKENIZER:
            del step.input_map[Tensor.QUERY_STATE]


def _replace(repeated: Any, kept: list[Any]) -> None:
    """What a repeated field of a message holds; protobuf has no assignment to one."""
    copies = [type(each).FromString(each.SerializeToString()) for each in kept]
    del repeated[:]
    repeated.extend(copies)
