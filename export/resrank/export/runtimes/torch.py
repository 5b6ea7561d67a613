"""``--runtime torch``: the checkpoint itself, by torch on a GPU, or on a CPU where there is none."""

from __future__ import annotations

from pathlib import Path

import torch

from resrank.core.checkpoint import ENCODER_DIR, PROJECTORS_FILE, RERANKER_DIR, CheckpointSpec
from resrank.core.names import CHECKPOINT_DIR, CHECKPOINT_FILE, Model
from resrank.core.prompt import PromptLayout
from resrank.export.export_options import ExportOptions
from resrank.export.gpu_serving import GpuServing
from resrank.export.manifest import EngineFacts
from resrank.export.repository import EngineModel
from resrank.export.runtimes.base import ENGINE_MODELS, EngineChoice, RuntimeExport, Subject, parity_facts
from resrank.export.runtimes.measurement import measure, parity_failure
from resrank.export.runtimes.shapes import gpu_serving
from resrank.serving.engines import EngineKind, EngineOptions, Precision, load_engine

_PART_OF = {Model.ENCODER: ENCODER_DIR, Model.RERANKER: RERANKER_DIR}
_USUAL_PRECISIONS = (Precision.BF16, Precision.FP32)


class TorchRuntime:
    """An :class:`~resrank.export.runtimes.base.ExportRuntime`."""

    def __init__(self, options: ExportOptions) -> None:
        self._options = options
        self._gpu: GpuServing | None = None

    def prepare(self, checkpoint: Path, spec: CheckpointSpec, layout: PromptLayout) -> None:
        """See the protocol."""
        self._gpu = gpu_serving(self._options, spec, layout)

    def bytes_needed(self, parameters: int) -> int:
        """See the protocol: nothing, the checkpoint's files are linked."""
        return 0

    def export(self, subject: Subject) -> RuntimeExport:
        """See the protocol."""
        tried: list[EngineChoice] = []
        chosen = {model: self._choose(model, subject, tried) for model in ENGINE_MODELS}
        files = checkpoint_files(subject.checkpoint)
        models = {
            model: EngineModel(
                EngineFacts(
                    engine=EngineKind.TORCH,
                    precision=choice.parity.options.precision,
                    threads=0,
                    opset=None,
                    onnx_sha256={},
                    parity=parity_facts(choice),
                    plans={},
                    profiles=(),
                    checkpoint_sha256=subject.model.spec.digest(),
                ),
                files,
            )
            for model, choice in chosen.items()
        }
        return RuntimeExport(models, chosen, tuple(tried), gpu=self._gpu)

    def _choose(self, model: Model, subject: Subject, tried: list[EngineChoice]) -> EngineChoice:
        """The first precision that passes."""
        device = 0 if torch.cuda.is_available() else None
        wished = self._options.precision
        for precision in (wished,) if wished else _USUAL_PRECISIONS:
            options = EngineOptions(EngineKind.TORCH, precision, device=device)
            subject.notify(f"Checking the {model.value} on torch {precision.value}")
            engine = load_engine(subject.checkpoint / _PART_OF[model], options)
            tried.append(measure(subject.gate, model, engine, options))
            if tried[-1].parity.passed:
                return tried[-1]
        raise parity_failure(model, tried)


def checkpoint_files(checkpoint: Path) -> dict[str, Path]:
    """What torch reads of a checkpoint, by the paths in the version folder.

    Returns:
        ``checkpoint/resrank.json`` and so on, to the checkpoint's own files.
    """
    files = [path for name in (CHECKPOINT_FILE, PROJECTORS_FILE) if (path := checkpoint / name).is_file()]
    for part in (ENCODER_DIR, RERANKER_DIR):
        files += sorted(path for path in (checkpoint / part).iterdir() if path.is_file())
    return {f"{CHECKPOINT_DIR}/{path.relative_to(checkpoint).as_posix()}": path for path in files}
