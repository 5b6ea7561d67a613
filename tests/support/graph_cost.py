"""What one pass of a graph costs, counted operator by operator at given sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, TensorProto, numpy_helper

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity", "Expand", "Concat"})


@dataclass(frozen=True)
class GraphCost:
    """Counts of one graph.

    Attributes:
        products: Floating-point operations of products and attention: 2 for each multiplication with its addition.
        elementwise: One for each element that any other operator computes.
        weight_bytes: Of all floating-point constants, each counted once.
        attention_bytes: What all attention operators read and write, as they are given it.
        largest: Elements of the largest tensor that is computed.
    """

    products: int
    elementwise: int
    weight_bytes: int
    attention_bytes: int
    largest: int


def graph_cost(path: Path, sizes: Mapping[str, int]) -> GraphCost:
    """Counts a graph.

    Args:
        path: ``model.onnx``; its external data is not read.
        sizes: Name of each dynamic axis to its size.
    """
    model = onnx.load(path, load_external_data=False)
    del model.graph.value_info[:]
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    _fold_input_shapes(model.graph)
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    types = {
        value.name: (value.type.tensor_type.elem_type, [dim.dim_value for dim in value.type.tensor_type.shape.dim])
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    types |= {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in graph.initializer}
    computed = {name for node in graph.node for name in node.output if name and types[name][0] in _FLOATS}
    unknown = [name for name in computed if not all(types[name][1])]
    assert not unknown, f"sizes of {unknown[:3]} are not known"

    def elements(name: str) -> int:
        return math.prod(types[name][1])

    def size(name: str) -> int:
        return elements(name) * onnx.helper.tensor_dtype_to_np_dtype(types[name][0]).itemsize

    products = elementwise = attention_bytes = 0
    for node in graph.node:
        result = node.output[0]
        if node.op_type == "MatMul":
            products += 2 * elements(result) * types[node.input[0]][1][-1]
        elif node.op_type == "Attention":
            (_, heads, rows, width), (_, _, columns, _) = (types[name][1] for name in node.input[:2])
            batch, depth = types[result][1][0], types[node.input[2]][1][-1]
            products += 2 * batch * heads * rows * columns * (width + depth)
            attention_bytes += sum(map(size, (*node.input[:3], result)))
        elif result in computed and node.op_type not in _MOVES:
            elementwise += elements(result)
    return GraphCost(
        products=products,
        elementwise=elementwise,
        weight_bytes=sum(size(tensor.name) for tensor in graph.initializer if tensor.data_type in _FLOATS),
        attention_bytes=attention_bytes,
        largest=max(map(elements, computed)),
    )


def _fold_input_shapes(graph: GraphProto) -> None:
    """Writes the inputs' sizes where they are read: inference does not follow them into a ``Range``."""
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.input}
    known: dict[str, np.ndarray] = {}
    for node in list(graph.node):
        of = node.input[0] if node.input else ""
        if node.op_type == "Shape" and of in sizes:
            ends = {attribute.name: attribute.i for attribute in node.attribute}
            known[node.output[0]] = np.array(sizes[of][ends.get("start", 0) : ends.get("end")], np.int64)
        elif node.op_type == "Squeeze" and of in known:
            known[node.output[0]] = known[of].squeeze()
        else:
            continue
        graph.node.remove(node)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in known.items())
