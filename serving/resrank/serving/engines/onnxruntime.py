"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from resrank.core.extras import install_command
from resrank.core.telemetry import no_telemetry
from resrank.serving.engines.base import EngineError, EngineOptions, Precision


class OnnxRuntimeEngine:
    """An :class:`~resrank.serving.engines.base.Engine` on ``CPUExecutionProvider``, fp32 only: no bf16 MatMul."""

    def __init__(self, model: Path, options: EngineOptions) -> None:
        """Loads the graph.

        Raises:
            EngineError: ``onnxruntime`` is missing, the precision is not fp32, or the graph is refused.
        """
        no_telemetry()
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineError(f"onnxruntime is not installed: {install_command('cpu')}") from error
        if options.precision is not Precision.FP32:
            raise EngineError(f"onnxruntime on a CPU computes in fp32, not {options.precision.value}: use openvino")
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = options.threads
        session_options.log_severity_level = 3
        # Threads that wait for the next operator by spinning take the cores from the other engines: a pass over 100
        # candidates took 14 ms of processor time in a running stack, and takes 1.8 when they sleep.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(model), session_options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base class
            raise EngineError(f"{model}: onnxruntime cannot load it: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Computes all outputs (see the protocol)."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
