"""What an exported graph still needs before TensorRT takes it well, whatever the precision."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PassManager
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
    TopologicalSortPass,
)

from resrank.core.errors import ExportError

NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
"""Operators that normalise the residual stream, or queries and keys."""


def tidy(model: ir.Model) -> None:
    """Rewrites a graph in place into one that computes the same and that TensorRT's parser and builder take well.

    Cosines and sines of positions are computed once instead of once a layer and side; shapes of reshapes that are known
    are constants; rotary tables get the batch dimension that the operator's definition asks for (torch's exporter
    leaves it at 1, which ONNX Runtime broadcasts and TensorRT refuses); what the exporter noted about its source is
    dropped.
    """
    for node in list(model.graph):
        if node.op_type == "Reshape":
            _fix_shape(model.graph, node)
    PassManager([CommonSubexpressionEliminationPass(), DeduplicateInitializersPass()])(model)
    _batch_rotary_tables(model.graph)
    finish(model)


def finish(model: ir.Model) -> None:
    """Drops what nothing reads any more, in place, and orders the nodes."""
    PassManager([RemoveUnusedNodesPass(), TopologicalSortPass(), ClearMetadataAndDocStringPass()])(model)


def final_norm(graph: ir.Graph) -> ir.Node:
    """The last normalisation, whose output is the last hidden state.

    Args:
        graph: An encoder's or a reranker's.

    Raises:
        ExportError: There is none, or several end the graph side by side.
    """
    norms = [node for node in graph if node.op_type in NORMS]
    last = [norm for norm in norms if not any(node.op_type in NORMS for node in downstream(norm))]
    if len(last) != 1:
        names = ", ".join(str(norm.name) for norm in last) or "none"
        raise ExportError(f"a graph needs one last normalisation before its outputs, found {names}")
    return last[0]


def downstream(node: ir.Node) -> set[ir.Node]:
    """Every node that reads, over any number of steps, what a node computes."""
    reached: set[ir.Node] = set()
    frontier = [node]
    while frontier:
        for successor in frontier.pop().successors():
            if successor not in reached:
                reached.add(successor)
                frontier.append(successor)
    return reached


def constant(graph: ir.Graph, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
    """An initializer of a graph with a value of a few elements; the same name gives the same initializer."""
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]


def _fix_shape(graph: ir.Graph, node: ir.Node) -> None:
    """Replaces a reshape's computed shape by a constant: 0 copies the input's dimension, -1 stands for at most one."""
    data, shape = node.inputs[0], node.inputs[1]
    before, after = data.shape if data is not None else None, node.outputs[0].shape
    if shape is None or shape.is_initializer() or before is None or after is None:
        return
    dims = []
    for axis, size in enumerate(after):
        if isinstance(size, int):
            dims.append(size)
        else:
            dims.append(0 if axis < len(before) and before[axis] == size else -1)
    if dims.count(-1) > 1:
        return
    name = "shape_" + "x".join("rest" if size == -1 else str(size) for size in dims)
    node.replace_input_with(1, constant(graph, name, np.array(dims, np.int64)))
    node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _batch_rotary_tables(graph: ir.Graph) -> None:
    """Expands the cosines and sines of [1, S, D/2] to the batch."""
    rotations = [node for node in graph if node.op_type == "RotaryEmbedding" and len(node.inputs) == 3]
    tables = dict.fromkeys(table for node in rotations for table in node.inputs[1:])
    if not tables:
        return
    batch = ir.node("Shape", [graph.inputs[0]], {"start": 0, "end": 1}, name="batch_size")
    ones = constant(graph, "ones_2", np.ones(2, np.int64))
    target = ir.node("Concat", [batch.outputs[0], ones], {"axis": 0}, name="shape_of_batch")
    graph.insert_before(graph[0], [batch, target])
    for table in tables:
        producer = table.producer() if table is not None else None
        if table is None or producer is None:
            raise ExportError("a rotary embedding whose tables do not depend on the sequence is not supported")
        expand = ir.node("Expand", [table, target.outputs[0]], name=f"{table.name}_of_batch")
        expand.outputs[0].type = table.type
        graph.insert_after(producer, expand)
        for reader, index in tuple(table.uses()):
            if reader.op_type == "RotaryEmbedding":
                reader.replace_input_with(index, expand.outputs[0])
