"""``resrank export``: a checkpoint becomes a complete, immutable Triton model repository."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from resrank.checkpoint import RERANKER_DIR, CheckpointSpec, encoder_identity, file_sha256
from resrank.engines import Engine, EngineKind, EngineOptions, Precision, load_engine
from resrank.engines.base import EngineError
from resrank.errors import ExportError, ParityError
from resrank.modeling import ResRankModel
from resrank.names import Model
from resrank.tokenization import PromptTokenizer
from resrank_export.adapters import full_checkpoint
from resrank_export.onnx_graphs import OPSET, export_encoder, export_reranker, refuse_sliding_windows
from resrank_export.parity import ParityGate, ParityResult, parity_table
from resrank_export.repository import RepositoryPlan, check_target, write_repository

MANIFEST_SCHEMA = 1
_TIMED_RUNS = 7
_VERSIONS_OF = ("resrank", "torch", "transformers", "onnx", "onnxscript", "openvino", "onnxruntime", "numpy")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class EngineChoice:
    """One engine that was tried for one model.

    Attributes:
        parity: Its figures against the reference.
        latency_ms: Least time of one pass in milliseconds: the encoder over the parity batch, the reranker over its
            first row (as many candidates as one pass takes).
    """

    parity: ParityResult
    latency_ms: float


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        repository: The folder for ``tritonserver --model-repository``.
        spec: The checkpoint's fields.
        tried: Every engine that was compiled, with parity and time.
        chosen: Model name to the engine that the repository holds.
        refused: Engines that could not be compiled here, and why.
    """

    repository: Path
    spec: CheckpointSpec
    tried: tuple[EngineChoice, ...]
    chosen: dict[Model, EngineChoice]
    refused: tuple[str, ...]


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    cpu_engine: EngineKind | None = None,
    precision: Precision | None = None,
    threads: int = 0,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> ExportReport:
    """Exports both graphs, gates every engine by parity and writes the repository with the fastest that passes.

    Args:
        checkpoint: A valid checkpoint folder; an adapter checkpoint is merged with its bases first.
        out: The repository to write; nothing half-written is ever seen there.
        cpu_engine: Only this engine, or None for whichever is fastest.
        precision: Only this precision, or None for whichever is fastest.
        threads: Threads of one inference, 0 for all cores.
        force: Replace a repository that an earlier export wrote.
        progress: Called with one line per step.

    Returns:
        What was tried and chosen.

    Raises:
        CheckpointError: The checkpoint is not valid.
        ParityError: No engine is within tolerance; the message holds the table.
        ExportError: The graphs cannot be exported, or no engine can be compiled here.
    """
    wished = _engine_options(cpu_engine, precision, threads)
    check_target(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.export-", dir=out.parent) as scratch:
        progress(f"Loading {checkpoint}")
        checkpoint = full_checkpoint(checkpoint, Path(scratch), progress)
        model = ResRankModel.from_checkpoint(checkpoint)
        layout = PromptTokenizer(checkpoint / RERANKER_DIR, model.spec.reranker).layout
        refuse_sliding_windows(model, layout)
        progress("Exporting the encoder to ONNX")
        encoder_onnx = export_encoder(model, Path(scratch, Model.ENCODER))
        progress("Exporting the reranker to ONNX")
        reranker_onnx = export_reranker(model, Path(scratch, Model.RERANKER))
        progress("Computing the fp32 reference")
        gate = ParityGate(model, layout)
        tried: list[EngineChoice] = []
        refused: list[str] = []
        for options in wished:
            for name, path in ((Model.ENCODER, encoder_onnx), (Model.RERANKER, reranker_onnx)):
                progress(f"Checking the {name.value} on {options.kind.value} {options.precision.value}")
                try:
                    tried.append(_measure(gate, name, load_engine(path, options), options))
                except EngineError as error:
                    refused.append(str(error))
        chosen = {name: _fastest(name, tried, refused) for name in (Model.ENCODER, Model.RERANKER)}
        progress(f"Writing {out}")
        spec = model.spec
        plan = RepositoryPlan(
            spec=spec,
            checkpoint=checkpoint,
            encoder_onnx=encoder_onnx,
            reranker_onnx=reranker_onnx,
            encoder_engine=chosen[Model.ENCODER].parity.options,
            reranker_engine=chosen[Model.RERANKER].parity.options,
            manifest=_manifest(spec, encoder_onnx, reranker_onnx, chosen),
        )
        write_repository(plan, out, force=force)
    return ExportReport(out, spec, tuple(tried), chosen, tuple(dict.fromkeys(refused)))


def _engine_options(kind: EngineKind | None, precision: Precision | None, threads: int) -> tuple[EngineOptions, ...]:
    possible = (
        (EngineKind.OPENVINO, Precision.BF16),
        (EngineKind.OPENVINO, Precision.FP32),
        (EngineKind.ONNXRUNTIME, Precision.FP32),
    )
    options = tuple(
        EngineOptions(*pair, threads=threads)
        for pair in possible
        if kind in (None, pair[0]) and precision in (None, pair[1])
    )
    if not options:
        raise ExportError("onnxruntime does not compute in bf16 on a CPU: use openvino, or fp32")
    return options


def _measure(gate: ParityGate, name: Model, engine: Engine, options: EngineOptions) -> EngineChoice:
    if name is Model.ENCODER:
        return EngineChoice(gate.check_encoder(engine, options), _latency_ms(engine, gate.encoder_case.inputs))
    first_row = {tensor: array[:1] for tensor, array in gate.reranker_case.inputs.items()}
    return EngineChoice(gate.check_reranker(engine, options), _latency_ms(engine, first_row))


def _latency_ms(engine: Engine, inputs: dict[str, NDArray[Any]]) -> float:
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        engine.run(inputs)
        times.append(time.perf_counter() - start)
    return min(times) * 1e3  # the run least disturbed by whatever else the machine does


def _fastest(name: Model, tried: Iterable[EngineChoice], refused: Iterable[str]) -> EngineChoice:
    of_model = [choice for choice in tried if choice.parity.model is name]
    if not of_model:
        raise ExportError(f"no engine can run the {name.value} here: {'; '.join(dict.fromkeys(refused))}")
    passing = [choice for choice in of_model if choice.parity.passed]
    if not passing:
        table = parity_table([choice.parity for choice in of_model])
        raise ParityError(f"no engine computes the {name.value} as the torch reference does:\n{table}")
    return min(passing, key=lambda choice: choice.latency_ms)


def _manifest(
    spec: CheckpointSpec, encoder_onnx: Path, reranker_onnx: Path, chosen: dict[Model, EngineChoice]
) -> dict[str, object]:
    onnx_files = {Model.ENCODER: encoder_onnx, Model.RERANKER: reranker_onnx}
    return {
        "schema_version": MANIFEST_SCHEMA,
        "runtime": "cpu",
        "checkpoint": {
            "name": spec.name,
            "sha256": spec.digest(),
            "encoder_sha256": encoder_identity(spec),
        },
        "models": {
            name.value: {
                "onnx_sha256": _graph_sha256(onnx_files[name]),
                "opset": OPSET,
                "engine": choice.parity.options.kind.value,
                "precision": choice.parity.options.precision.value,
                "threads": choice.parity.options.threads,
                "parity": {
                    "state_cosine": choice.parity.state_cosine,
                    "score_difference": choice.parity.score_difference,
                    "kendall_tau": choice.parity.kendall_tau,
                    "rows": choice.parity.rows,
                    "tolerance": asdict(choice.parity.tolerance),
                },
            }
            for name, choice in chosen.items()
        },
        "optimization_profiles": None,
        "compute_capability": None,
        "built_on": {"machine": platform.machine(), "python": platform.python_version()},
        "versions": {name: _version(name) for name in _VERSIONS_OF},
    }


def _graph_sha256(path: Path) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in sorted(path.parent.iterdir()) if file.is_file()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
