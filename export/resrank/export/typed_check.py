"""Holds a written graph against the rules of strong typing: what runs low that should not, and casts that cancel.

:mod:`resrank.export.typed_precision` decides the types. This check reads the file that it led to, infers every type
from the operators anew, and so also finds what went wrong between the decision and the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from resrank.core.errors import ExportError
from resrank.export.typed_precision import LOW_TYPES, MOVES
from resrank.export.typed_structure import downstream, final_norm
from resrank.serving.engines.base import Precision

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_LOW = frozenset(LOW_TYPES.values())


def refuse_wrong_types(path: Path, precision: Precision) -> None:
    """Refuses a graph of which an operator runs in another precision than it should.

    Args:
        path: ``model.onnx``.
        precision: What it was typed for.

    Raises:
        ExportError: There is a fault; the message has the first one and how many there are.
    """
    faults = precision_faults(path, precision)
    if faults:
        more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ExportError(
            f"{path}: {faults[0]}{more}: this backbone cannot be typed {precision.value}; export with --runtime torch "
            "or cpu"
        )


def precision_faults(path: Path, precision: Precision) -> tuple[str, ...]:
    """Lists what runs low although it belongs to fp32, and conversions that cancel.

    fp32 is everything but products with a constant matrix, attention, look-ups in embedding tables and what only moves
    their results; and everything after the last hidden state. An operator that nobody has thought of is therefore fp32,
    too.

    Args:
        path: ``model.onnx``; its external data is not read.
        precision: What it was typed for.

    Returns:
        A clause for each fault, with the operator's name; empty for a graph that is as it should be.
    """
    try:
        graph = _with_inferred_types(path)
    except onnx.shape_inference.InferenceError as error:
        return (" ".join(str(error).split()),)
    low = LOW_TYPES.get(precision)
    after = downstream(final_norm(graph))
    return tuple(fault for node in graph for fault in (*_wrong_types(node, low, node in after), *_needless_cast(node)))


def _with_inferred_types(path: Path) -> ir.Graph:
    model = onnx.load(path, load_external_data=False)
    del model.graph.value_info[:]  # what typing noted there is its opinion; inference has its own
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)).graph


def _wrong_types(node: ir.Node, low: ir.DataType | None, is_after: bool) -> Iterator[str]:
    types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None} & _LOW
    if not types or node.op_type == "Cast":  # a cast may read whatever there is, the CANDIDATES in fp16 among it
        return
    name = f"{node.name} ({node.op_type})"
    if is_after:
        yield f"{name} runs in {_listed(types)} after the last hidden state"
    elif types != {low}:
        yield f"{name} runs in {_listed(types)}"
    elif not _may_run_low(node):
        yield f"{name} runs in {_listed(types)} and belongs to fp32"


def _may_run_low(node: ir.Node) -> bool:
    match node.op_type:
        case "MatMul":
            return _is_constant(node.inputs[1])
        case "Gather":
            return _is_constant(node.inputs[0])
        case "Attention":
            return True
        case op_type:
            return op_type in MOVES


def _needless_cast(node: ir.Node) -> Iterator[str]:
    """A cast to the type that a value has, or back to the one it had, with nothing computed in between."""
    if node.op_type != "Cast" or node.outputs[0].dtype not in _FLOATS:
        return
    value, wished = node.inputs[0], node.outputs[0].dtype
    if value is not None and value.dtype == wished:
        yield f"{node.name} casts {_name(wished)} to itself"
        return
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in MOVES:
        value = producer.inputs[0]
        producer = value.producer() if value is not None else None
    source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
    if producer is not None and source is not None and source.dtype == wished:
        yield f"{producer.name} and {node.name} cancel: {_name(wished)} to {_name(producer.outputs[0].dtype)} and back"


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _listed(types: set[ir.DataType | None]) -> str:
    return " and ".join(sorted(map(_name, types)))


def _name(dtype: ir.DataType | None) -> str:
    return "an unknown type" if dtype is None else dtype.name.lower()
