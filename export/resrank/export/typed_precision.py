"""Strong typing: the casts and weights that make an fp32 graph compute its products in bf16 or fp16.

One pass in the order of computation. Three kinds of operators run low: products with a constant matrix, attention, and
gathers from embedding tables; what only moves data (reshape, transpose, …) keeps the type it is given. All others read
and write fp32, and a cast stands exactly where a value changes hands, one per value, so that no two casts can cancel.

Attention's own softmax is not a tensor of the graph: TensorRT refuses the attribute ``softmax_precision``, since its
fused kernels sum and exponentiate in fp32 registers whatever Q, K and V are in.

FP16 has five bits of exponent. What keeps its products finite:

- products that read a normalisation are bounded by sqrt(h)·|gain ∘ column of the weight|, three orders below 65504;
- attention averages values, which such a product computed;
- every other product (the MLP's second, whose input in Qwen-family models reaches beyond 65504 at the attention sinks,
  and P_in) reads its rows divided by their largest magnitude, and the result is multiplied by it in fp32;
- the residual stream, where the massive activations live, is fp32;
- a weight beyond 65504 is refused.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from resrank.core.errors import ExportError
from resrank.export.typed_structure import NORMS, constant, downstream, final_norm, finish
from resrank.serving.engines.base import Precision

LOW_TYPES = {Precision.BF16: ir.DataType.BFLOAT16, Precision.FP16: ir.DataType.FLOAT16}
"""What the precisions below fp32 compute products in."""

MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity"})
"""Operators that copy elements and compute nothing; they run in whatever type their input has."""

_FLOAT = ir.DataType.FLOAT
_FLOATS = frozenset({_FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_ARRAY_TYPES = {ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16), ir.DataType.FLOAT16: np.dtype(np.float16)}
_SUFFIXES = {_FLOAT: "fp32", ir.DataType.BFLOAT16: "bf16", ir.DataType.FLOAT16: "fp16"}
_LEAST_ROW = float(np.finfo(np.float16).tiny)  # a row of zeros stays one


def lower(model: ir.Model, precision: Precision) -> None:
    """Makes a graph compute its products in a low type, in place.

    Args:
        model: In fp32, tidied.
        precision: BF16 or FP16.

    Raises:
        ExportError: A product is of a kind that is not known here.
    """
    _Lowering(model.graph, LOW_TYPES[precision]).run()
    finish(model)


class _Lowering:
    def __init__(self, graph: ir.Graph, low: ir.DataType) -> None:
        self.graph = graph
        self.low = low
        self.after = downstream(final_norm(graph))
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.weights: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        for node in list(self.graph):
            data = node.inputs[0] if node.inputs else None
            if node in self.after:
                self.keep_fp32(node)
            elif node.op_type == "MatMul":
                self.lower_product(node)
            elif node.op_type == "Attention":
                self.lower_attention(node)
            elif node.op_type == "Gather" and _is_table(data):
                self.replace(node, 0, self.low_weight(node, 0))
                self.set_low(node)
            elif node.op_type in MOVES and data is not None and data.dtype == self.low:
                self.set_low(node)
            elif node.op_type in {"Gemm", "Einsum", "Conv"}:
                raise ExportError(f"{node.name}: a product by {node.op_type} is not supported in typed graphs")
            else:
                self.keep_fp32(node)

    def keep_fp32(self, node: ir.Node) -> None:
        """Gives a node fp32 in place of what was lowered before it."""
        if node.op_type == "Cast":
            return  # reads any type
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == self.low:
                self.replace(node, index, self.cast(value, _FLOAT))

    def lower_product(self, node: ir.Node) -> None:
        data, weight = node.inputs[0], node.inputs[1]
        if not _is_table(weight) or data is None:
            raise ExportError(
                f"{node.name}: a product of two activations outside an Attention operator: torch exported this "
                "backbone's attention in parts, which is not supported in typed graphs"
            )
        self.replace(node, 1, self.low_weight(node, 1))
        if self.low == ir.DataType.FLOAT16 and not _is_bounded(data):
            self.lower_by_rows(node, data)
            return
        self.replace(node, 0, self.cast(data, self.low))
        self.set_low(node)

    def lower_by_rows(self, node: ir.Node, data: ir.Value) -> None:
        """Divides each row by its largest magnitude before the product, and multiplies the product by it in fp32."""
        rows = self.cast(data, _FLOAT)
        least = constant(self.graph, "least_row_magnitude", np.array(_LEAST_ROW, np.float32))
        last_axis = constant(self.graph, "last_axis", np.array([-1], np.int64))
        magnitudes = self.insert(node, "Abs", [rows], like=rows)
        largest = self.insert(node, "ReduceMax", [magnitudes, last_axis], like=rows, last=1)
        scale = self.insert(node, "Max", [largest, least], like=rows, last=1)
        scaled = self.insert(node, "Div", [rows, scale], like=rows)
        self.replace(node, 0, self.cast(scaled, self.low))
        result = node.outputs[0]
        readers = tuple(result.uses())
        self.set_low(node)
        product = self.cast(result, _FLOAT)
        producer = product.producer()
        assert producer is not None
        restored = self.insert(producer, "Mul", [product, scale], like=result, after=True)
        for reader, index in readers:
            self.replace(reader, index, restored)

    def lower_attention(self, node: ir.Node) -> None:
        """Casts Q, K, V and an additive mask; Q is scaled in fp32: TensorRT would apply the rounded root to Q and K."""
        query = node.inputs[0]
        scale = node.attributes.get_float("scale")
        assert query is not None
        if scale is not None and scale != 1.0:
            factor = constant(self.graph, f"attention_scale_{scale:.9g}", np.array(scale, np.float32))
            query = self.insert(node, "Mul", [self.cast(query, _FLOAT), factor], like=query)
            node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
        self.replace(node, 0, query)
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in _FLOATS:
                self.replace(node, index, self.cast(value, self.low))
        self.set_low(node)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A value in another type: itself, what it was cast up from, or one cast right behind its producer."""
        producer = value.producer()
        if producer is not None and producer.op_type == "Cast":
            source = producer.inputs[0]
            assert source is not None
            if source.dtype in _FLOATS and value.dtype == _FLOAT:
                value = source  # it was cast up, without loss
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self.casts:
            cast = self.make("Cast", [value], {"to": int(dtype)}, name=f"{value.name}_{_SUFFIXES[dtype]}")
            cast.outputs[0].type = ir.TensorType(dtype)
            cast.outputs[0].shape = value.shape
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], cast)
            else:
                self.graph.insert_after(producer, cast)
            self.casts[value, dtype] = cast.outputs[0]
        return self.casts[value, dtype]

    def low_weight(self, node: ir.Node, index: int) -> ir.Value:
        """A constant matrix in the low type, converted when it is written."""
        weight = node.inputs[index]
        assert weight is not None
        if weight not in self.weights:
            tensor = weight.const_value
            assert tensor is not None
            name = f"{weight.name}_{_SUFFIXES[self.low]}"
            lazy = ir.LazyTensor(
                lambda: ir.tensor(_converted(tensor, self.low), dtype=self.low, name=name),
                dtype=self.low,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
            )
            value = ir.Value(name=name, shape=lazy.shape, type=ir.TensorType(self.low), const_value=lazy)
            self.graph.register_initializer(value)
            self.weights[weight] = value
        return self.weights[weight]

    def set_low(self, node: ir.Node) -> None:
        for output in node.outputs:
            output.type = ir.TensorType(self.low)

    def replace(self, node: ir.Node, index: int, value: ir.Value) -> None:
        node.replace_input_with(index, value)

    def make(
        self, op_type: str, inputs: list[ir.Value], attributes: dict[str, int] | None = None, *, name: str
    ) -> ir.Node:
        node = ir.node(op_type, inputs, attributes, name=name)
        node.outputs[0].name = name
        return node

    def insert(
        self,
        at: ir.Node,
        op_type: str,
        inputs: list[ir.Value],
        *,
        like: ir.Value,
        last: int | None = None,
        after: bool = False,
    ) -> ir.Value:
        """Adds an fp32 operator before or after a node, shaped like a value but for its last dimension."""
        node = self.make(op_type, inputs, name=f"{at.outputs[0].name}_{op_type.lower()}")
        value = node.outputs[0]
        value.type = ir.TensorType(_FLOAT)
        if like.shape is not None:
            value.shape = ir.Shape(like.shape if last is None else [*like.shape[:-1], last])
        if after:
            self.graph.insert_after(at, node)
        else:
            self.graph.insert_before(at, node)
        return value


def _is_table(value: ir.Value | None) -> bool:
    """Whether a value is a constant floating-point matrix."""
    tensor = value.const_value if value is not None and value.is_initializer() else None
    return tensor is not None and tensor.dtype == _FLOAT and len(tensor.shape) == 2


def _is_bounded(value: ir.Value) -> bool:
    """Whether a product's operand comes from a normalisation or from attention, so that fp16 holds both."""
    producer = value.producer()
    while producer is not None and producer.op_type in MOVES | {"Cast"}:
        source = producer.inputs[0]
        producer = source.producer() if source is not None else None
    return producer is not None and producer.op_type in NORMS | {"Attention"}


def _converted(tensor: ir.TensorProtocol, low: ir.DataType) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    array = tensor.numpy()
    if low == ir.DataType.FLOAT16:
        largest = float(np.abs(array).max(initial=0.0))
        if largest > np.finfo(np.float16).max:
            raise ExportError(
                f"{tensor.name}: a weight of {largest:g} is beyond fp16's 65504: export with bf16 or fp32"
            )
    return array.astype(_ARRAY_TYPES[low])
