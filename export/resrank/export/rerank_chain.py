"""The steps of ``rerank``, whose order follows from when a checkpoint needs the query's vector."""

from __future__ import annotations

from collections.abc import Mapping

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelEnsembling

from resrank.core.checkpoint import CheckpointSpec
from resrank.core.names import Model, Tensor

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
    _step(configs, Model.RERANK_PROMPT).input_map[Tensor.QUERY_EMBEDDING] = Tensor.QUERY_EMBEDDING
    steps.sort(key=lambda step: step.model_name not in _ENCODING)


def _encode_never(configs: Mapping[Model, ModelConfig]) -> None:
    _release_query_tokenizer(configs)
    _remove_input(configs[Model.RESIDUAL_SCORING], Tensor.QUERY_EMBEDDING)
    del _step(configs, Model.RESIDUAL_SCORING).input_map[Tensor.QUERY_EMBEDDING]
    steps = configs[Model.RERANK].ensemble_scheduling.step
    for model in _ENCODING:
        steps.remove(_step(configs, model))


def _release_query_tokenizer(configs: Mapping[Model, ModelConfig]) -> None:
    """Takes out what makes it wait for the reranker."""
    _remove_input(configs[Model.QUERY_TOKENIZER], Tensor.QUERY_STATE)
    del _step(configs, Model.QUERY_TOKENIZER).input_map[Tensor.QUERY_STATE]


def _remove_input(config: ModelConfig, name: Tensor) -> None:
    (tensor,) = (tensor for tensor in config.input if tensor.name == name)
    config.input.remove(tensor)


def _step(configs: Mapping[Model, ModelConfig], model: Model) -> ModelEnsembling.Step:
    (step,) = (step for step in configs[Model.RERANK].ensemble_scheduling.step if step.model_name == model)
    return step
