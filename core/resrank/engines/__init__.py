"""Engines run one exported graph. All stand behind :class:`Engine`; adding one is one file and one line here."""

from __future__ import annotations

from pathlib import Path

from resrank.engines.base import Engine, EngineKind, EngineOptions, Precision

__all__ = ["Engine", "EngineKind", "EngineOptions", "Precision", "load_engine"]


def load_engine(model: Path, options: EngineOptions) -> Engine:
    """Compiles an exported graph.

    Args:
        model: ``model.onnx``; external data stands beside it.
        options: Which engine, at which precision, on how many threads.

    Raises:
        EngineError: The engine's package is missing, or it cannot take the graph or the precision.
    """
    if options.kind is EngineKind.OPENVINO:
        from resrank.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(model, options)
    from resrank.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(model, options)
