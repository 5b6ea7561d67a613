"""Engines run one exported model. All stand behind :class:`Engine`; adding one is one file and one line here."""

from __future__ import annotations

from pathlib import Path

from resrank.core.extras import install_command
from resrank.serving.engines.base import Engine, EngineError, EngineKind, EngineOptions, Precision

__all__ = ["Engine", "EngineError", "EngineKind", "EngineOptions", "Precision", "load_engine"]


def load_engine(model: Path, options: EngineOptions) -> Engine:
    """Makes an exported model ready to run.

    Args:
        model: What the engine reads: ``model.onnx``, beside which its external data stands; for torch one backbone's
            folder in a full checkpoint, whose name says which role it plays.
        options: Which engine, at which precision, where.

    Raises:
        EngineError: The engine's package is missing, no Python model runs it, or it cannot take the model, the
            precision or the machine.
        CheckpointError: Torch is to read something that is no checkpoint.
    """
    match options.kind:
        case EngineKind.OPENVINO:
            from resrank.serving.engines.openvino import OpenVinoEngine

            return OpenVinoEngine(model, options)
        case EngineKind.ONNXRUNTIME:
            from resrank.serving.engines.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(model, options)
        case EngineKind.TORCH:
            try:
                from resrank.serving.engines.torch import TorchEngine
            except ImportError as error:
                raise EngineError(f"torch is not installed ({error}): {install_command('torch')}") from error

            return TorchEngine(model, options)
        case EngineKind.TENSORRT | EngineKind.TENSORRT_RTX:
            raise EngineError(f"{model}: plans run in Triton's own TensorRT backend, not in a Python model")
