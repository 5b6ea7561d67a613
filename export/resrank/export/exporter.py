"""``resrank export``: a checkpoint becomes a complete, immutable Triton model repository."""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from resrank.core.calibration_file import calibration_of
from resrank.core.checkpoint import ENCODER_DIR, RERANKER_DIR, CheckpointSpec, read_spec, validate_projectors
from resrank.core.errors import ExportError
from resrank.core.names import Model
from resrank.core.progress import Notify
from resrank.core.tokenization import PromptTokenizer
from resrank.core.weights import backbone_tensors
from resrank.export.adapters import full_checkpoint
from resrank.export.engine_head import engine_head
from resrank.export.export_options import ExportOptions
from resrank.export.manifest import Manifest
from resrank.export.manifest_writer import make_manifest
from resrank.export.onnx_graphs import refuse_sliding_windows
from resrank.export.parity import ParityGate
from resrank.export.repository import RepositoryPlan, check_target, write_repository
from resrank.export.runtimes import EngineChoice, Subject, load_runtime
from resrank.model.modeling import ResRankModel
from resrank.model.quiet import quiet_transformers


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        repository: The folder for ``tritonserver --model-repository``.
        spec: The checkpoint's fields.
        manifest: The repository's.
        tried: Every engine that was measured, with parity and time.
        chosen: Model name to the engine that the repository holds.
        refused: Engines that could not be made here, and why.
        put_off: Why plans are left to ``build-engines.sh``; None where nothing is left to do.
    """

    repository: Path
    spec: CheckpointSpec
    manifest: Manifest
    tried: tuple[EngineChoice, ...]
    chosen: dict[Model, EngineChoice]
    refused: tuple[str, ...]
    put_off: str | None = None


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    options: ExportOptions | None = None,
    *,
    force: bool = False,
    notify: Notify = lambda _: None,
) -> ExportReport:
    """Exports both models, gates their engines by parity and writes the repository.

    Args:
        checkpoint: A valid checkpoint folder; an adapter checkpoint is merged with its bases first.
        out: The repository to write; nothing half-written is ever seen there.
        options: What it is for; by default CPUs, and whichever engine is fastest.
        force: Replace a repository that an earlier export wrote.
        notify: Called with one line per step.

    Returns:
        What was tried and chosen.

    Raises:
        CheckpointError: The checkpoint is not valid.
        ParityError: No engine is within tolerance; the message holds the table.
        ExportError: The models cannot be exported, no engine can be made, or there is no room for them.
    """
    options = options or ExportOptions()
    check_target(out, force=force)
    runtime = load_runtime(options)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.export-", dir=out.parent) as scratch:
        notify(f"Loading {checkpoint}")
        checkpoint = full_checkpoint(checkpoint, Path(scratch), notify)
        spec = read_spec(checkpoint)
        validate_projectors(checkpoint, spec, verify_hash=True)  # before the engines' head is made of them
        calibration = calibration_of(checkpoint, spec.digest())
        layout = PromptTokenizer(checkpoint / RERANKER_DIR, spec.reranker).layout
        runtime.prepare(checkpoint, spec, layout)
        _require_space(out.parent, runtime.bytes_needed(_parameters(checkpoint)))
        head = engine_head(checkpoint, spec, Path(scratch))
        with quiet_transformers():
            model = ResRankModel.from_checkpoint(head.checkpoint)
        refuse_sliding_windows(model, layout)
        notify("Computing the fp32 reference")
        gate = ParityGate(model, layout, residual_factor=head.factor)
        made = runtime.export(Subject(head.checkpoint, model, layout, gate, Path(scratch), notify))
        notify(f"Writing {out}")
        manifest = make_manifest(spec, calibration, options, made)
        plan = RepositoryPlan(
            spec,
            checkpoint,
            made.models,
            manifest,
            gpu=made.gpu,
            residual_factor=head.factor,
            build_script=made.build_script,
            embedding_cache_mib=options.embedding_cache_mib,
        )
        write_repository(plan, out, force=force)
    return ExportReport(out, spec, manifest, made.tried, dict(made.chosen), made.refused, made.put_off)


def _parameters(checkpoint: Path) -> int:
    """Weights of both backbones together."""
    return sum(
        math.prod(tensor.shape)
        for part in (ENCODER_DIR, RERANKER_DIR)
        for tensor in backbone_tensors(checkpoint / part).values()
    )


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"{folder}: the export needs at least {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: make room or "
            "choose another --out"
        )
