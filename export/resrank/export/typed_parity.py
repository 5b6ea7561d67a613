"""Parity of strongly typed graphs without a GPU: the graph itself, run by ONNX Runtime in the precision that it says.

ONNX Runtime's CPU has no bf16 products, attention or norms, and of fp16 some only on some processors. What a tensor
core does with low operands is: multiply exactly, sum in fp32, round the result. So each product and each attention of
the graph is run in fp32 between casts, its operands being low already and its result rounded back; whatever else the
graph says runs as it stands. What this does not show: how a fused attention kernel rounds its softmax before the
second product, and other orders of summation. Both are below what rounding the operands does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from resrank.core.extras import install_command
from resrank.core.names import Model
from resrank.core.telemetry import no_telemetry
from resrank.export.parity import ParityGate, ParityResult
from resrank.export.typed_precision import LOW_TYPES
from resrank.export.typed_structure import constant
from resrank.serving.engines.base import EngineError, EngineKind, EngineOptions, Precision

_COMPUTING = frozenset({"MatMul", "Attention"})
_FLOAT = ir.DataType.FLOAT


def check_typed(gate: ParityGate, name: Model, path: Path, precision: Precision) -> ParityResult:
    """Measures a typed graph against the torch reference; seconds for a model of 135M parameters.

    Args:
        gate: Holds the reference's answers.
        name: ``ENCODER`` or ``RERANKER``.
        path: ``model.onnx`` of :mod:`resrank.export.typed_graphs`.
        precision: What the graph was typed for; its tolerance applies.

    Returns:
        The figures, by ONNX Runtime. Infinities and NaN do not pass.

    Raises:
        EngineError: ONNX Runtime is not installed or refuses the graph.
    """
    engine = TypedGraphEngine(path, precision)
    options = EngineOptions(EngineKind.ONNXRUNTIME, precision)
    return gate.check_encoder(engine, options) if name is Model.ENCODER else gate.check_reranker(engine, options)


class TypedGraphEngine:
    """An :class:`~resrank.serving.engines.base.Engine` that computes a typed graph on a CPU, exactly, not fast."""

    def __init__(self, path: Path, precision: Precision) -> None:
        """Loads a graph; weights stay in their file until they are used.

        Args:
            path: ``model.onnx``, its external data beside it.
            precision: What the graph was typed for.

        Raises:
            EngineError: ONNX Runtime is not installed or refuses the graph.
        """
        no_telemetry()
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineError(f"onnxruntime is not installed: {install_command('cpu')}") from error
        model = ir.load(path)
        expand_masks(model.graph)
        if precision in LOW_TYPES:
            compute_in_fp32(model, LOW_TYPES[precision])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # A cast down and up again is what rounds: nothing may take it out.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        try:
            self._session = onnxruntime.InferenceSession(
                ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base class
            raise EngineError(f"{path}: onnxruntime cannot load it: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Computes all outputs (see the protocol)."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


def compute_in_fp32(model: ir.Model, low: ir.DataType) -> None:
    """Puts casts around every product and attention in a low type, in place, so that it runs in fp32 and is rounded.

    Args:
        model: A typed graph; the types of its values have to be known.
        low: BFLOAT16 or FLOAT16.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type not in _COMPUTING or node.outputs[0].dtype != low:
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == low:
                up = _cast(value, _FLOAT, f"{node.name}_operand{index}")
                graph.insert_before(node, up)
                node.replace_input_with(index, up.outputs[0])
        result = node.outputs[0]
        readers = tuple(result.uses())
        result.type = ir.TensorType(_FLOAT)
        down = _cast(result, low, f"{node.name}_rounded")
        graph.insert_after(node, down)
        for reader, index in readers:
            reader.replace_input_with(index, down.outputs[0])


def expand_masks(graph: ir.Graph) -> None:
    """Gives masks of [B, 1, 1, S] the queries' dimension, in place: TensorRT broadcasts it, ONNX Runtime does not."""
    for node in list(graph):
        mask = node.inputs[3] if node.op_type == "Attention" and len(node.inputs) > 3 else None
        if mask is None or (mask.shape is not None and mask.shape[-2] != 1):
            continue
        length = ir.node("Shape", [node.inputs[0]], {"start": 2, "end": 3}, name=f"{node.name}_length")
        one = constant(graph, "one_1", np.ones(1, np.int64))
        shape = ir.node("Concat", [one, one, length.outputs[0], one], {"axis": 0}, name=f"{node.name}_mask_shape")
        expanded = ir.node("Expand", [mask, shape.outputs[0]], name=f"{node.name}_mask")
        expanded.outputs[0].type = mask.type
        graph.insert_before(node, [length, shape, expanded])
        node.replace_input_with(3, expanded.outputs[0])


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=name)
    node.outputs[0].name = name
    node.outputs[0].type = ir.TensorType(dtype)
    return node
