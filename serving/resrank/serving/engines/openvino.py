"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.core.cpu import has_vnni
from resrank.core.extras import install_command
from resrank.core.telemetry import no_telemetry
from resrank.serving.engines.base import EngineError, EngineOptions, Precision


class OpenVinoEngine:
    """An :class:`~resrank.serving.engines.base.Engine` on OpenVINO's CPU plugin.

    ``bf16`` rounds the operands of the matrix products with weights and nothing else: the residual stream, the norms,
    attention and softmax stay in fp32. The plugin's own bf16 mode rounds those too, which was measured on a 135M
    decoder to be no faster and to put scores twice as far off (|ds| 1.5e-2 against 0.8e-2).

    ``int8`` keeps those matrices in 8 bits, 32 neighbours in a row with a scale and a zero point of their own, and lets
    the plugin round the activations likewise as they come: no calibration is needed, and all else stays in fp32. NNCF's
    static scales (64 passages to calibrate with) take two thirds of the time with e5-small, but their least cosine with
    fp32 is 0.993 instead of 0.9998.
    """

    def __init__(self, model: Path, options: EngineOptions) -> None:
        """Compiles the graph for this machine (seconds).

        Raises:
            EngineError: ``openvino`` is missing, the CPU has no instructions for the precision, or the graph is
                refused.
        """
        no_telemetry()
        try:
            import openvino
        except ImportError as error:
            raise EngineError(f"openvino is not installed: {install_command('cpu')}") from error
        core = openvino.Core()
        if options.precision is Precision.BF16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise EngineError("this CPU has no bf16 instructions: export with --precision fp32")
        if options.precision is Precision.INT8 and not has_vnni():
            raise EngineError("this CPU has no VNNI instructions, which int8 needs: export with --precision fp32")
        if options.precision is Precision.FP16:
            raise EngineError("openvino on a CPU does not compute in fp16: use bf16 or fp32")
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
            elif options.precision is Precision.INT8:
                _quantize_weight_products(graph)
                properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _INT8_GROUP
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

    def product(activation: Any, matrix: NDArray[np.float32], transposed: bool) -> Any:
        key = (activation.get_node().get_name(), activation.get_index())
        if key not in rounded:
            rounded[key] = opset13.convert(activation, Type.bf16)
        constant = opset13.constant(matrix, dtype=Type.bf16)
        return opset13.convert(opset13.matmul(rounded[key], constant, transposed, True), Type.f32)

    _replace_weight_products(graph, product)


_INT8_GROUP = 32
"""Neighbours in a row that share a scale, of a matrix and of the activations; the least that the plugin's kernels take.
Measured with e5-small, 20 passages, as least cosine with fp32, and one thread's time for 8 passages of 118 tokens (482
ms in fp32): 384 neighbours 0.9989, 200 ms; 128 0.9996, 230 ms; 32 0.9998, 254 ms. What costs is the second product of
the feed-forward layers, whose activations have outliers."""


def _quantize_weight_products(graph: Any) -> None:
    """Keeps every constant matrix that is multiplied with in 8 bits, in place.

    Raises:
        EngineError: A matrix has rows that cannot be cut into groups.
    """
    from openvino import Type, opset13

    def product(activation: Any, matrix: NDArray[np.float32], transposed: bool) -> Any:
        if matrix.shape[1] % _INT8_GROUP:
            raise EngineError(
                f"openvino cannot multiply this model in int8: a matrix is {matrix.shape[1]} wide, no multiple of "
                f"{_INT8_GROUP}: export with --precision fp32"
            )
        groups = matrix.reshape(matrix.shape[0], -1, _INT8_GROUP)
        least = np.minimum(groups.min(axis=2, keepdims=True), 0)
        scale = (np.maximum(groups.max(axis=2, keepdims=True), 0) - least) / 255
        scale[scale == 0] = 1
        zero = np.rint(-least / scale)
        levels = np.clip(np.rint(groups / scale) + zero, 0, 255).astype(np.uint8)
        places = opset13.convert(opset13.constant(zero.astype(np.uint8)), Type.f32)
        centred = opset13.subtract(opset13.convert(opset13.constant(levels), Type.f32), places)
        kept = opset13.multiply(centred, opset13.constant(scale))
        whole = opset13.reshape(kept, opset13.constant(np.array(matrix.shape, np.int64)), False)
        return opset13.matmul(activation, whole, transposed, True)

    _replace_weight_products(graph, product)


def _replace_weight_products(graph: Any, product: Callable[[Any, NDArray[np.float32], bool], Any]) -> None:
    """Puts another product in the place of each one with a constant matrix.

    Args:
        graph: OpenVINO's; changed in place.
        product: From an activation, the matrix [out, in] and whether the activation is to be transposed to the new
            node. [out, in] is the layout that kernels want, else they transpose at every inference.
    """
    for node in graph.get_ordered_ops():
        weight = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if weight is None or weight.get_type_name() != "Constant":
            continue
        attributes = node.get_attributes()
        matrix = weight.data if attributes["transpose_b"] else weight.data.T
        new = product(
            node.input_value(0), np.ascontiguousarray(matrix, dtype=np.float32), bool(attributes["transpose_a"])
        )
        for consumer in list(node.output(0).get_target_inputs()):
            consumer.replace_source_output(new.output(0))
    graph.validate_nodes_and_infer_types()
