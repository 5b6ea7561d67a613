"""Writes a complete, immutable model repository: what plain ``tritonserver --model-repository DIR`` serves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from resrank.checkpoint import ENCODER_DIR, RERANKER_DIR, CheckpointSpec
from resrank.engines import EngineOptions
from resrank.errors import CheckpointError, ExportError
from resrank.names import CHECKPOINT_FILE, ENGINE_FILE, MANIFEST_FILE, Model, Parameter
from resrank.tokenization import PromptTokenizer
from resrank_export.model_configs import CONFIG_FILE, VERSION, complete_configs, templates_folder
from resrank_export.warmup import add_warmup

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_TOKENIZER_OF = {
    Model.PASSAGE_TOKENIZER: ENCODER_DIR,
    Model.QUERY_TOKENIZER: ENCODER_DIR,
    Model.RERANK_PROMPT: RERANKER_DIR,
}
_NEEDS_SPEC = (*_TOKENIZER_OF, Model.RESIDUAL_SCORING)


@dataclass(frozen=True)
class RepositoryPlan:
    """What a repository is made of.

    Attributes:
        spec: The checkpoint's fields.
        checkpoint: The checkpoint's folder, for its tokenizers.
        encoder_onnx: The encoder's graph; external data stands beside it as ``<name>.data``.
        reranker_onnx: The reranker's graph, likewise.
        encoder_engine: What hosts the encoder.
        reranker_engine: What hosts the reranker.
        manifest: The content of ``manifest.json``.
    """

    spec: CheckpointSpec
    checkpoint: Path
    encoder_onnx: Path
    reranker_onnx: Path
    encoder_engine: EngineOptions
    reranker_engine: EngineOptions
    manifest: Mapping[str, object]


def write_repository(plan: RepositoryPlan, out: Path, *, force: bool = False) -> None:
    """Writes a repository beside its place and renames it there, so that nobody ever sees half of one.

    Graphs are hard-linked where the file system allows it, else copied: make them for the repository alone.

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
        replaced = Path(scratch, "replaced")
        if out.exists():
            out.rename(replaced)
        try:
            repository.rename(out)
        except OSError as error:
            if replaced.exists():
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
    return (folder / MANIFEST_FILE).is_file() and all((folder / model / CONFIG_FILE).is_file() for model in Model)


def _fill(repository: Path, plan: RepositoryPlan) -> None:
    configs = complete_configs(plan.spec, _engine_parameters(plan))
    templates = templates_folder()
    for model in Model:
        version = repository / model / VERSION
        version.mkdir(parents=True)  # ensembles have an empty one
        program = templates / model / VERSION / "model.py"
        if program.is_file():
            shutil.copyfile(program, version / program.name)
        if model in _NEEDS_SPEC:
            shutil.copyfile(plan.checkpoint / CHECKPOINT_FILE, version / CHECKPOINT_FILE)
        if model in _TOKENIZER_OF:
            _copy_tokenizer(plan.checkpoint / _TOKENIZER_OF[model], version)
    _place_graph(plan.encoder_onnx, repository / Model.ENCODER / VERSION)
    _place_graph(plan.reranker_onnx, repository / Model.RERANKER / VERSION)
    add_warmup(configs, plan.spec, repository)
    for model, config in configs.items():
        (repository / model / CONFIG_FILE).write_text(text_format.MessageToString(config), encoding="utf-8")
    manifest = json.dumps(plan.manifest, indent=2, ensure_ascii=False) + "\n"
    (repository / MANIFEST_FILE).write_text(manifest, encoding="utf-8")


def _engine_parameters(plan: RepositoryPlan) -> dict[Model, dict[Parameter, object]]:
    spec = plan.spec
    prompt = PromptTokenizer(plan.checkpoint / RERANKER_DIR, spec.reranker).layout
    hosts = (
        (
            Model.ENCODER,
            ENCODER_DIR,
            plan.encoder_engine,
            max(spec.encoder.max_passage_tokens, spec.encoder.max_query_tokens),
        ),
        (
            Model.RERANKER,
            RERANKER_DIR,
            plan.reranker_engine,
            prompt.length(spec.reranker.max_query_tokens, spec.reranker.max_passages),
        ),
    )
    return {
        model: {
            Parameter.ENGINE: options.kind.value,
            Parameter.PRECISION: options.precision.value,
            Parameter.THREADS: options.threads,
            Parameter.VOCABULARY_SIZE: _vocabulary_size(plan.checkpoint / backbone / "config.json"),
            Parameter.MAX_TOKENS: max_tokens,
        }
        for model, backbone, options, max_tokens in hosts
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


def _place_graph(onnx: Path, version: Path) -> None:
    _link(onnx, version / ENGINE_FILE)
    # The graph refers to its data by name, so the name stays.
    data = onnx.with_name(f"{onnx.name}.data")
    if data.is_file():
        _link(data, version / data.name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        shutil.copyfile(source, target)
