"""Triton model configs for one checkpoint: templates parsed by protobuf, completed, checked and printed by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelEnsembling

from resrank.core.buckets import parse_buckets
from resrank.core.calibration import Calibration
from resrank.core.checkpoint import CheckpointSpec, encoder_identity
from resrank.core.errors import ExportError
from resrank.core.limits import DEFAULT_EMBEDDING_CACHE_MIB, MAX_BATCH_SIZE, MAX_TEXT_PASSAGES
from resrank.core.names import Model, Parameter, Tensor
from resrank.export.rerank_chain import steps_behind_encoding, write_chain

CONFIG_FILE = "config.pbtxt"
_VECTORS = frozenset(
    {Tensor.EMBEDDING, Tensor.QUERY_EMBEDDING, Tensor.CANDIDATES, Tensor.PASSAGE_STATES, Tensor.QUERY_STATE}
)
"""Tensors whose last dimension is d."""

_PUBLIC = {
    Model.EMBED_PASSAGE,
    Model.EMBED_QUERY,
    Model.EMBED_BULK,
    Model.RERANK,
    Model.RERANK_EMBEDDED,
    Model.RERANK_TEXT,
    Model.SEARCH,
}
"""What clients call, and so where they look for the checkpoint's identity."""

_SCORING = (Model.RERANK, Model.RERANK_TEXT, Model.SEARCH)
"""What gives scores, and so where clients look for what they are made of."""

Configs = dict[Model, ModelConfig]


def templates_folder() -> Path:
    """The models of ``model_repository/``: inside the installed package, or at the root of a source checkout."""
    packaged = Path(__file__).with_name("model_repository")
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "model_repository"


def complete_configs(
    spec: CheckpointSpec,
    engine_parameters: Mapping[Model, Mapping[Parameter, object]],
    adapt: Callable[[Configs], None] = lambda _: None,
    *,
    calibration: Calibration | None = None,
    embedding_cache_mib: int = DEFAULT_EMBEDDING_CACHE_MIB,
) -> Configs:
    """Makes a checkpoint's configs.

    Args:
        spec: The checkpoint's fields.
        engine_parameters: What the hosts of ``encoder`` and ``reranker`` are told.
        adapt: Changes the configs of a CPU repository into those of another runtime, in place.
        calibration: What the checkpoint's scores mean; None where nobody fitted that.
        embedding_cache_mib: Memory for vectors of passages that ``rerank_text`` has seen; 0 for none.

    Returns:
        Every model's config, checked as a whole.

    Raises:
        ExportError: A template is missing or not a config, or the models do not fit each other.
    """
    configs = {model: _read_template(model) for model in Model}
    write_chain(configs, spec)
    if not steps_behind_encoding(spec):
        del configs[Model.RERANK_EMBEDDED]
    for config in configs.values():
        if config.name != Model.SEARCH:  # one query in a request: how much is found differs
            config.max_batch_size = MAX_BATCH_SIZE
        for tensor in (*config.input, *config.output):
            if tensor.name in _VECTORS:
                tensor.dims[-1] = spec.encoder.embedding_dim
            elif tensor.name == Tensor.RELATIONS:
                tensor.dims[-1] = spec.reranker.slots.relation_width
    adapt(configs)
    _bound_callers(configs)
    max_passages = _max_passages(spec, configs)
    identity: dict[Parameter, object] = {
        Parameter.ENCODER_SHA256: encoder_identity(spec),
        Parameter.CHECKPOINT_SHA256: spec.digest(),
        Parameter.EMBEDDING_DIM: spec.encoder.embedding_dim,
        Parameter.MAX_PASSAGES: max_passages,
    }
    for model in configs.keys() & _PUBLIC:
        set_parameters(configs[model], identity)
    scale = _scale(spec, calibration)
    if Model.RERANK_EMBEDDED in configs:
        scale[Parameter.TAKES_EMBEDDING] = "true"
    for model in _SCORING:
        set_parameters(configs[model], scale)
    set_parameters(
        configs[Model.RERANK_TEXT],
        {
            Parameter.EMBED_BATCH_SIZE: configs[Model.EMBED_PASSAGE].max_batch_size,
            Parameter.MAX_PASSAGES: min(max_passages, MAX_TEXT_PASSAGES),
            Parameter.EMBEDDING_CACHE_MIB: embedding_cache_mib,
        },
    )
    set_parameters(configs[Model.SEARCH], _chain_at_hand(configs))
    for model, parameters in engine_parameters.items():
        set_parameters(configs[model], parameters)
    validate_configs(configs)
    return configs


def _chain_at_hand(configs: Configs) -> dict[Parameter, object]:
    """The steps of ``rerank_embedded``, which ``search`` takes one by one, some of them in its own process.

    On CPUs alone: on a GPU the engine's outputs would go through the host once more than inside the ensemble.
    """
    if Model.RERANK_EMBEDDED not in configs or configs[Model.RERANKER].backend != "python":
        return {}
    chain = [
        {"model": step.model_name, "inputs": dict(step.input_map), "outputs": dict(step.output_map)}
        for step in configs[Model.RERANK_EMBEDDED].ensemble_scheduling.step
    ]
    return {Parameter.RERANK_CHAIN: json.dumps(chain)}


def _scale(spec: CheckpointSpec, calibration: Calibration | None) -> dict[Parameter, object]:
    """What a caller needs to know to join and to read scores, and to order lists longer than a pass."""
    fusion = spec.fusion
    parameters: dict[Parameter, object] = {
        Parameter.LEXICAL_WEIGHT: fusion.lexical_weight,
        Parameter.SLOT_CONTENT: spec.reranker.slots.content.value,
    }
    if fusion.cosine_map is not None:
        parameters[Parameter.COSINE_MAP] = fusion.cosine_map.to_json()
    if calibration is not None:
        parameters[Parameter.CALIBRATION] = calibration.to_json()
    return parameters


def set_parameters(config: ModelConfig, parameters: Mapping[Parameter, object]) -> None:
    """Writes ``parameters`` of a config, which are all text."""
    for name, value in parameters.items():
        config.parameters[name.value].string_value = str(value)


def validate_configs(configs: Mapping[Model, ModelConfig]) -> None:
    """Checks what Triton would only say at start, or not at all.

    Raises:
        ExportError: A config bears another model's name, or an ensemble is not a chain of models that fit.
    """
    for model, config in configs.items():
        if config.name != model:
            raise ExportError(f"{model}/{CONFIG_FILE}: name is {config.name!r}")
        if config.HasField("ensemble_scheduling"):
            _validate_ensemble(config, configs)
    rows, called = configs[Model.RERANK_TEXT].max_batch_size, configs[Model.RERANK].max_batch_size
    if rows > called:
        raise ExportError(f"{Model.RERANK_TEXT}/{CONFIG_FILE}: max_batch_size {rows} is above {called} of rerank")


def _read_template(model: Model) -> ModelConfig:
    path = templates_folder() / model / CONFIG_FILE
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise ExportError(f"{path}: not a readable model config: {error}") from error


def _bound_callers(configs: Configs) -> None:
    """Lets nobody take more rows in one request than the models that it calls."""
    for config in configs.values():
        if config.HasField("ensemble_scheduling"):
            composing = (configs[Model(step.model_name)] for step in config.ensemble_scheduling.step)
            config.max_batch_size = min(called.max_batch_size for called in composing)
    configs[Model.RERANK_TEXT].max_batch_size = configs[Model.RERANK].max_batch_size


def _max_passages(spec: CheckpointSpec, configs: Configs) -> int:
    """Candidates in one pass: the checkpoint's limit, or the longest bucket where that is shorter."""
    parameters = configs[Model.RERANK_PROMPT].parameters
    if Parameter.CANDIDATE_BUCKETS not in parameters:
        return spec.reranker.max_passages
    text = parameters[Parameter.CANDIDATE_BUCKETS].string_value
    return min(spec.reranker.max_passages, parse_buckets(text, field=Parameter.CANDIDATE_BUCKETS)[-1])


def _validate_ensemble(config: ModelConfig, configs: Mapping[Model, ModelConfig]) -> None:
    known = {tensor.name: _form(tensor) for tensor in config.input}
    previous: set[str] | None = None
    for step in config.ensemble_scheduling.step:
        where = f"{config.name}/{CONFIG_FILE}: step {step.model_name}"
        if step.model_name not in configs:
            raise ExportError(f"{where}: no such model in the repository")
        composing = configs[Model(step.model_name)]
        if composing.max_batch_size < config.max_batch_size:
            raise ExportError(f"{where}: max_batch_size {composing.max_batch_size} is below {config.max_batch_size}")
        mapped = dict(step.input_map)
        needed = {tensor.name for tensor in composing.input if not tensor.optional or tensor.name in mapped}
        if set(mapped) != needed:
            raise ExportError(f"{where}: input_map is not exactly the model's inputs")
        for tensor in composing.input:
            if tensor.name in mapped and known.get(mapped[tensor.name]) != _form(tensor):
                raise ExportError(f"{where}: {tensor.name} does not fit {mapped[tensor.name]}")
        if previous is not None and previous.isdisjoint(step.input_map.values()):
            raise ExportError(f"{where}: takes nothing from the step before it, so the ensemble is a fork, not a chain")
        previous = set(step.output_map.values())
        known.update(_outputs(step, composing, where))
    for tensor in config.output:
        if known.get(tensor.name) != _form(tensor):
            raise ExportError(f"{config.name}/{CONFIG_FILE}: no step makes {tensor.name} in this form")


def _outputs(step: ModelEnsembling.Step, composing: ModelConfig, where: str) -> dict[str, tuple[int, ...]]:
    forms = {tensor.name: _form(tensor) for tensor in composing.output}
    unknown = set(step.output_map) - set(forms)
    if unknown:
        raise ExportError(f"{where}: the model has no output {', '.join(sorted(unknown))}")
    return {target: forms[name] for name, target in step.output_map.items()}


def _form(tensor: object) -> tuple[int, ...]:
    """Data type and dimensions."""
    return (tensor.data_type, *tensor.dims)  # type: ignore[attr-defined]
