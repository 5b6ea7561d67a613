"""Writes a complete, immutable model repository: what plain ``tritonserver --model-repository DIR`` serves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from resrank.core.checkpoint import ENCODER_DIR, RERANKER_DIR, CheckpointSpec
from resrank.core.errors import CheckpointError, ExportError
from resrank.core.limits import DEFAULT_EMBEDDING_CACHE_MIB
from resrank.core.names import CHECKPOINT_FILE, MANIFEST_FILE, VERSION, Model, Parameter
from resrank.core.prompt import PromptLayout
from resrank.core.tokenization import PromptTokenizer
from resrank.export.build_script import BUILD_SCRIPT
from resrank.export.gpu_configs import configure_gpu
from resrank.export.gpu_serving import GpuServing
from resrank.export.manifest import EngineFacts, Manifest, write_manifest
from resrank.export.model_configs import CONFIG_FILE, Configs, complete_configs, set_parameters, templates_folder
from resrank.export.queue_bounds import bound_queues
from resrank.export.warmup import add_warmup
from resrank.serving.near_steps import NEAR_MODELS

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_TOKENIZER_OF = {
    Model.PASSAGE_TOKENIZER: ENCODER_DIR,
    Model.QUERY_TOKENIZER: ENCODER_DIR,
    Model.RERANK_PROMPT: RERANKER_DIR,
}
_BACKBONE_OF = {Model.ENCODER: ENCODER_DIR, Model.BULK_ENCODER: ENCODER_DIR, Model.RERANKER: RERANKER_DIR}
_NEEDS_SPEC = (*_TOKENIZER_OF, Model.RESIDUAL_SCORING)


@dataclass(frozen=True)
class EngineModel:
    """``encoder`` or ``reranker``, ready to be placed.

    Attributes:
        facts: For the manifest.
        files: Path inside the version folder to the file that is linked there.
        row_ms: Milliseconds of one row on the machine that exported; None where the engine did not run there.
    """

    facts: EngineFacts
    files: Mapping[str, Path]
    row_ms: float | None = None


@dataclass(frozen=True)
class RepositoryPlan:
    """What a repository is made of.

    Attributes:
        spec: The checkpoint's fields.
        checkpoint: The checkpoint's folder, for its tokenizers.
        engines: ``encoder`` and ``reranker``.
        manifest: The content of ``manifest.json``.
        gpu: How GPUs serve it; None for CPUs.
        residual_factor: Of :class:`resrank.export.engine_head.EngineHead`.
        build_script: What builds the plans later; None where nothing is left to build.
        embedding_cache_mib: Memory for vectors of passages that ``rerank_text`` has seen, in MiB; 0 for none.
    """

    spec: CheckpointSpec
    checkpoint: Path
    engines: Mapping[Model, EngineModel]
    manifest: Manifest
    gpu: GpuServing | None = None
    residual_factor: float = 0.0
    build_script: str | None = None
    embedding_cache_mib: int = DEFAULT_EMBEDDING_CACHE_MIB


def write_repository(plan: RepositoryPlan, out: Path, *, force: bool = False) -> None:
    """Writes a repository beside its place and renames it there, so that nobody ever sees half of one.

    Engines' files are hard-linked where the file system allows it, else copied: nobody may change them afterwards.

    Args:
        plan: What it is made of.
        out: Where it shall be.
        force: Whether a repository that export made before is replaced.

    Raises:
        ExportError: ``out`` is taken, a file is missing, or the configs do not fit each other.
    """
    check_target(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".partial", dir=out.parent) as scratch:
        repository = Path(scratch, "repository")
        try:
            _fill(repository, plan)
        except (OSError, CheckpointError) as error:
            raise ExportError(f"{out}: the repository could not be written: {error}") from error
        check_target(out, force=force)  # once more: another export may have ended meanwhile
        replaced = Path(scratch, "replaced")
        if force and out.exists():
            out.rename(replaced)
        try:
            repository.rename(out)
        except OSError as error:
            if replaced.exists():
                with suppress(OSError):  # somebody else's is there by now
                    replaced.rename(out)
            raise ExportError(f"{out}: the repository could not be put in its place: {error}") from error


def check_target(out: Path, *, force: bool = False) -> None:
    """Says before the work begins whether a repository may be written.

    Args:
        out: Where it shall be.
        force: Whether a repository that export made before may be replaced.

    Raises:
        ExportError: ``out`` is taken.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink() or not _made_by_export(out):
        raise ExportError(f"{out}: exists and is not a model repository that export made; choose another --out")
    if not force:
        raise ExportError(f"{out}: exists; choose another --out, or replace it with --force")


def _made_by_export(folder: Path) -> bool:
    # By the manifest and what every version wrote: an older repository has fewer models and may be replaced, too.
    return (folder / MANIFEST_FILE).is_file() and all(
        (folder / model / CONFIG_FILE).is_file() for model in (Model.ENCODER, Model.RERANKER)
    )


def _fill(repository: Path, plan: RepositoryPlan) -> None:
    layout = PromptTokenizer(plan.checkpoint / RERANKER_DIR, plan.spec.reranker).layout

    def adapt(configs: Configs) -> None:
        if plan.gpu is not None:
            configure_gpu(configs, plan.gpu, plan.spec, layout)

    configs = complete_configs(
        plan.spec,
        _engine_parameters(plan, layout),
        adapt,
        calibration=plan.manifest.checkpoint.calibration,
        embedding_cache_mib=plan.embedding_cache_mib,
    )
    if plan.spec.fusion.score_residual:
        set_parameters(configs[Model.RESIDUAL_SCORING], {Parameter.SCORE_RESIDUAL: plan.residual_factor})
    near = NEAR_MODELS if Parameter.RERANK_CHAIN in configs[Model.SEARCH].parameters else ()
    set_parameters(configs[Model.SEARCH], _near_steps(configs, near))
    bound_queues(configs, {model: engine.row_ms for model, engine in plan.engines.items() if engine.row_ms is not None})
    templates = templates_folder()
    for model in configs:
        version = repository / model / VERSION
        version.mkdir(parents=True)  # ensembles have an empty one
        program = templates / model / VERSION / "model.py"
        if program.is_file() and configs[model].backend == "python":
            shutil.copyfile(program, version / program.name)
        _copy_step(plan, model, version)
    for model in near:
        _copy_step(plan, model, repository / Model.SEARCH / VERSION / model)
    for model, engine in _hosted(plan).items():
        for name, source in engine.files.items():
            _link(source, repository / model / VERSION / name)
    add_warmup(configs, plan.spec, repository)
    for model, config in configs.items():
        (repository / model / CONFIG_FILE).write_text(text_format.MessageToString(config), encoding="utf-8")
    if plan.build_script is not None:
        script = repository / BUILD_SCRIPT
        script.write_text(plan.build_script, encoding="utf-8")
        script.chmod(0o755)
    write_manifest(plan.manifest, repository)


def _near_steps(configs: Configs, models: Sequence[Model]) -> dict[Parameter, object]:
    """What ``search`` is told of the steps that it takes itself: each model's own parameters."""
    told = {
        model.value: {name: value.string_value for name, value in configs[model].parameters.items()} for model in models
    }
    return {Parameter.NEAR_STEPS: json.dumps(told)} if told else {}


def _copy_step(plan: RepositoryPlan, model: Model, folder: Path) -> None:
    """What a step reads of the checkpoint, if anything."""
    if model in _NEEDS_SPEC:
        folder.mkdir(exist_ok=True)
        shutil.copyfile(plan.checkpoint / CHECKPOINT_FILE, folder / CHECKPOINT_FILE)
    if model in _TOKENIZER_OF:
        _copy_tokenizer(plan.checkpoint / _TOKENIZER_OF[model], folder)


def _hosted(plan: RepositoryPlan) -> dict[Model, EngineModel]:
    """Every model with an engine: on CPUs the encoder's a second time, for bulk work."""
    engines = dict(plan.engines)
    if plan.gpu is None:
        engines[Model.BULK_ENCODER] = engines[Model.ENCODER]
    return engines


def _engine_parameters(plan: RepositoryPlan, layout: PromptLayout) -> dict[Model, dict[Parameter, object]]:
    spec = plan.spec
    longest = {
        Model.ENCODER: max(spec.encoder.max_passage_tokens, spec.encoder.max_query_tokens),
        Model.RERANKER: layout.length(spec.reranker.max_query_tokens, spec.reranker.max_passages),
    }
    longest[Model.BULK_ENCODER] = longest[Model.ENCODER]
    if plan.gpu is not None:
        longest[Model.ENCODER] = min(longest[Model.ENCODER], plan.gpu.token_buckets[-1])
        longest[Model.RERANKER] = min(longest[Model.RERANKER], plan.gpu.buckets.sequence[-1])
    return {
        model: {
            Parameter.ENGINE: engine.facts.engine.value,
            Parameter.PRECISION: engine.facts.precision.value,
            Parameter.THREADS: engine.facts.threads,
            Parameter.VOCABULARY_SIZE: _vocabulary_size(plan.checkpoint / _BACKBONE_OF[model] / "config.json"),
            Parameter.MAX_TOKENS: longest[model],
        }
        for model, engine in _hosted(plan).items()
    }


def _vocabulary_size(path: Path) -> int:
    """Rows of the embedding table: ``vocab_size`` of a Hugging Face config, in ``text_config`` for some families."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for section in (config, config.get("text_config", {})):
        if isinstance(section.get("vocab_size"), int):
            return int(section["vocab_size"])
    raise ExportError(f"{path}: has no vocab_size")


def _copy_tokenizer(backbone: Path, version: Path) -> None:
    for name in _TOKENIZER_FILES:
        if (backbone / name).is_file():  # tokenizer_config.json is needed with append_eos only
            shutil.copyfile(backbone / name, version / name)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()  # a link to a link would point to where it no longer lies
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        shutil.copyfile(source, target)
