"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.core.extras import install_command
from resrank.core.telemetry import no_telemetry
from resrank.serving.engines.base import EngineError, EngineOptions, Precision


class OpenVinoEngine:
    """An :class:`~resrank.serving.engines.base.Engine` on OpenVINO's CPU plugin.

    ``bf16`` rounds the operands of the matrix products with weights and nothing else: the residual stream, the norms,
    attention and softmax stay in fp32. The plugin's own bf16 mode rounds those too, which was measured on a 135M
    decoder to be no faster and to put scores twice as far off (|ds| 1.5e-2 against 0.8e-2).
    """

    def __init__(self, model: Path, options: EngineOptions) -> None:
        """Compiles the graph for this machine (seconds).

        Raises:
            EngineError: ``openvino`` is missing, the CPU has no bf16, or the graph is refused.
        """
        no_telemetry()
        try:
            import openvino
        except ImportError as error:
            raise EngineError(f"openvino is not installed: {install_command('cpu')}") from error
        core = openvino.Core()
        if options.precision is Precision.BF16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise EngineError("this CPU has no bf16 instructions: export with --precision fp32")
        properties: dict[str, object] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            # Pinned, every engine of fewer threads than cores takes the same first cores: two of one thread each
            # encoded 20 passages/s on 2 cores, and unpinned 37.
            "ENABLE_CPU_PINNING": False,
        }
        if options.threads:
            properties["INFERENCE_NUM_THREADS"] = options.threads
        try:
            graph = core.read_model(model)
            if options.precision is Precision.BF16:
                _round_weight_products_to_bf16(graph)
            compiled = core.compile_model(graph, "CPU", properties)
        except RuntimeError as error:
            raise EngineError(f"{model}: openvino cannot compile it: {error}") from error
        self._request = compiled.create_infer_request()
        self._outputs = [(output, output.get_any_name()) for output in compiled.outputs]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Computes all outputs (see the protocol)."""
        results = self._request.infer(dict(inputs), share_inputs=True)
        # Copied: the request's own buffers are overwritten by the next call.
        return {name: results[output].copy() for output, name in self._outputs}


def _round_weight_products_to_bf16(graph: Any) -> None:
    """Gives every product with a constant matrix bf16 operands and an fp32 result, in place."""
    from openvino import Type, opset13

    rounded: dict[tuple[str, int], Any] = {}  # one conversion per activation, shared by Q, K, V or gate and up
    for node in graph.get_ordered_ops():
        weight = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if weight is None or weight.get_type_name() != "Constant":
            continue
        attributes = node.get_attributes()
        activation = node.input_value(0)
        key = (activation.get_node().get_name(), activation.get_index())
        if key not in rounded:
            rounded[key] = opset13.convert(activation, Type.bf16)
        # [out, in]: the layout the kernel wants, else it transposes at every inference.
        matrix = weight.data if attributes["transpose_b"] else weight.data.T
        constant = opset13.constant(np.ascontiguousarray(matrix, dtype=np.float32), dtype=Type.bf16)
        product = opset13.matmul(rounded[key], constant, attributes["transpose_a"], True)
        result = opset13.convert(product, Type.f32)
        for consumer in list(node.output(0).get_target_inputs()):
            consumer.replace_source_output(result.output(0))
    graph.validate_nodes_and_infer_types()
