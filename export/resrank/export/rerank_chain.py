"""``rerank`` as a list of steps, which follow from a checkpoint's fields; the ensemble's config is written from it.

A chain and never a fork: with two branches in flight, a bounded queue that fills leaves requests unanswered. The
reranker's queue is the one that fills. Where the vector is needed for the residual alone, the query is therefore
encoded after the pass, and a request that is shed has cost its prompt. Where it is read before, it is encoded first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tritonclient.grpc.model_config_pb2 import ModelConfig

from resrank.core.checkpoint import CheckpointSpec
from resrank.core.names import Model, Tensor
from resrank.serving.rerank_chain import ChainStep

# What tensors are called in the ensemble where it is not what the models call them.
_CHECKED = "CHECKED_CANDIDATES"
_QUERY_IDS, _QUERY_MASK = "QUERY_INPUT_IDS", "QUERY_ATTENTION_MASK"


def reranker_inputs(spec: CheckpointSpec) -> tuple[Tensor, ...]:
    """What the reranker's engine reads, in the order of :meth:`resrank.model.modeling.ResRankModel.outputs`."""
    content = spec.reranker.slots.content
    return (
        Tensor.INPUT_IDS,
        Tensor.PASSAGE_POSITIONS,
        *((Tensor.LAST_POSITION,) if spec.fusion.has_vector_residual else ()),
        *((Tensor.CANDIDATES,) if content.has_vectors else ()),
        *((Tensor.RELATIONS,) if content.has_relations else ()),
    )


def reranker_outputs(spec: CheckpointSpec) -> tuple[Tensor, ...]:
    """What it says of the candidates, in the order of :class:`resrank.model.modeling.RerankerOutputs`."""
    return (
        *((Tensor.PASSAGE_STATES, Tensor.QUERY_STATE) if spec.fusion.has_vector_residual else ()),
        *((Tensor.SCORE_RESIDUALS,) if spec.fusion.score_residual else ()),
    )


def encodes_first(spec: CheckpointSpec) -> bool:
    """Whether the query's vector is read before the reranker's pass, or the pass has no state to wait for."""
    return spec.reranker.slots.content.has_relations or not spec.fusion.has_vector_residual


def rerank_steps(spec: CheckpointSpec) -> tuple[ChainStep, ...]:
    """The chain of a checkpoint.

    Args:
        spec: Its fields.
    """
    if encodes_first(spec):
        return (*_encoding(spec), _prompt(spec), _reranker(spec), _scoring(spec))
    encoding = _encoding(spec) if spec.fusion.query_residual else ()
    return (_prompt(spec, counts=not encoding), _reranker(spec), *encoding, _scoring(spec))


def steps_behind_encoding(spec: CheckpointSpec) -> tuple[ChainStep, ...]:
    """The chain for who has the query's vector already; none where ``rerank`` reads no vector of the query.

    Args:
        spec: The checkpoint's fields.
    """
    steps = rerank_steps(spec)
    behind = tuple(step for step in steps if step.model not in (Model.QUERY_TOKENIZER, Model.ENCODER))
    return () if len(behind) == len(steps) else behind


def write_chain(configs: Mapping[Model, ModelConfig], spec: CheckpointSpec) -> None:
    """Writes the chain into the ensembles' configs, in place.

    The templates of its models have every tensor that some checkpoint needs; those that this one does not use go.

    Args:
        configs: Of every model, as the templates have them.
        spec: The checkpoint's fields.
    """
    steps = rerank_steps(spec)
    _compose(configs[Model.RERANK], steps)
    if embedded := steps_behind_encoding(spec):
        _compose(configs[Model.RERANK_EMBEDDED], embedded)
    for step in steps:
        if step.model is not Model.ENCODER:
            _keep(configs[step.model].input, step.inputs)
            _keep(configs[step.model].output, step.outputs)
    if not spec.fusion.query_residual:
        _keep(configs[Model.QUERY_TOKENIZER].input, (Tensor.TEXT,))


def _compose(config: ModelConfig, steps: Iterable[ChainStep]) -> None:
    for step in steps:
        entry = config.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
        entry.input_map.update({tensor.value: name for tensor, name in step.inputs.items()})
        entry.output_map.update({tensor.value: name for tensor, name in step.outputs.items()})


def _encoding(spec: CheckpointSpec) -> tuple[ChainStep, ...]:
    # After the pass, a state that it does not read makes the tokenizer wait for the reranker.
    waiting = {} if encodes_first(spec) else {Tensor.QUERY_STATE: Tensor.QUERY_STATE.value}
    return (
        ChainStep(
            Model.QUERY_TOKENIZER,
            {Tensor.TEXT: Tensor.QUERY.value, **waiting},
            {
                Tensor.INPUT_IDS: _QUERY_IDS,
                Tensor.ATTENTION_MASK: _QUERY_MASK,
                Tensor.TOKENS_READ: Tensor.TOKENS_READ.value,
            },
        ),
        ChainStep(
            Model.ENCODER,
            {Tensor.INPUT_IDS: _QUERY_IDS, Tensor.ATTENTION_MASK: _QUERY_MASK},
            {Tensor.EMBEDDING: Tensor.QUERY_EMBEDDING.value},
        ),
    )


def _prompt(spec: CheckpointSpec, *, counts: bool = False) -> ChainStep:
    """The laying out of the sequence, which counts the query's tokens where it is not encoded."""
    first = (Tensor.QUERY_EMBEDDING,) if encodes_first(spec) else ()
    engine = (tensor for tensor in reranker_inputs(spec) if tensor is not Tensor.CANDIDATES)
    places = (Tensor.CANDIDATE_PLACES,) if spec.reranker.slots.content.has_relations else ()
    counted = (Tensor.TOKENS_READ,) if counts else ()
    return ChainStep(
        Model.RERANK_PROMPT,
        _same((Tensor.QUERY, Tensor.CANDIDATES, *first)),
        {**_same((*engine, *places, Tensor.CANDIDATE_COUNT, *counted)), Tensor.CANDIDATES: _CHECKED},
    )


def _reranker(spec: CheckpointSpec) -> ChainStep:
    inputs = _same(reranker_inputs(spec))
    if Tensor.CANDIDATES in inputs:
        inputs[Tensor.CANDIDATES] = _CHECKED
    return ChainStep(Model.RERANKER, inputs, _same(reranker_outputs(spec)))


def _scoring(spec: CheckpointSpec) -> ChainStep:
    places = (Tensor.CANDIDATE_PLACES,) if spec.reranker.slots.content.has_relations else ()
    query = (Tensor.QUERY_EMBEDDING,) if spec.fusion.query_residual else ()
    inputs = _same((*reranker_outputs(spec), Tensor.CANDIDATE_COUNT, *places, *query))
    return ChainStep(
        Model.RESIDUAL_SCORING, {**inputs, Tensor.CANDIDATES: _CHECKED}, {Tensor.SCORES: Tensor.SCORES.value}
    )


def _same(tensors: Iterable[Tensor]) -> dict[Tensor, str]:
    return {tensor: tensor.value for tensor in tensors}


def _keep(tensors: object, names: Iterable[Tensor]) -> None:
    """Takes the inputs or outputs out of a config that are not among the names."""
    wanted = {name.value for name in names}
    for tensor in [tensor for tensor in tensors if tensor.name not in wanted]:  # type: ignore[attr-defined]
        tensors.remove(tensor)  # type: ignore[attr-defined]
