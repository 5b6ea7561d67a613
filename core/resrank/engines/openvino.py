"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from resrank.engines.base import EngineError, EngineOptions, Precision

_INFERENCE_PRECISION = {Precision.FP32: "f32", Precision.BF16: "bf16"}


class OpenVinoEngine:
    """An :class:`~resrank.engines.base.Engine` on OpenVINO's CPU plugin."""

    def __init__(self, model: Path, options: EngineOptions) -> None:
        """Compiles the graph for this machine (seconds).

        Raises:
            EngineError: ``openvino`` is missing, the CPU has no bf16, or the graph is refused.
        """
        try:
            import openvino
        except ImportError as error:
            raise EngineError("openvino is not installed: pip install 'resrank[cpu]'") from error
        core = openvino.Core()
        if options.precision is Precision.BF16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise EngineError("this CPU has no bf16 instructions: export with --precision fp32")
        properties: dict[str, object] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": _INFERENCE_PRECISION[options.precision],
        }
        if options.threads:
            properties["INFERENCE_NUM_THREADS"] = options.threads
        try:
            compiled = core.compile_model(core.read_model(model), "CPU", properties)
        except RuntimeError as error:
            raise EngineError(f"{model}: openvino cannot compile it: {error}") from error
        self._request = compiled.create_infer_request()
        self._outputs = [(output, output.get_any_name()) for output in compiled.outputs]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Computes all outputs (see the protocol)."""
        results = self._request.infer(dict(inputs), share_inputs=True)
        # Copied: the request's own buffers are overwritten by the next call.
        return {name: results[output].copy() for output, name in self._outputs}
