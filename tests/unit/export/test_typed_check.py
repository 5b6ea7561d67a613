"""The check of a written graph finds each kind of fault, by name, in a real graph that is right but for that fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import GraphProto, NodeProto, TensorProto, helper

from resrank.core.errors import ExportError
from resrank.core.names import Model
from resrank.export import typed_graphs
from resrank.export.typed_check import precision_faults, refuse_wrong_types
from resrank.export.typed_graphs import TypedGraph
from resrank.export.typed_precision import lower
from resrank.export.typed_structure import final_norm
from resrank.model.modeling import ResRankModel
from resrank.serving.engines import Precision
from support.tiny_checkpoint import make_tiny_checkpoint

FLOAT, HALF, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> TypedGraph:
    folder = tmp_path_factory.mktemp("typed") / "tiny"
    make_tiny_checkpoint(folder)
    return TypedGraph.trace(ResRankModel.from_checkpoint(folder), Model.RERANKER)


@pytest.fixture
def bf16(traced: TypedGraph, tmp_path: Path) -> Path:
    return traced.write(Precision.BF16, tmp_path)


def first(graph: GraphProto, op_type: str) -> NodeProto:
    return next(node for node in graph.node if node.op_type == op_type)


def last(graph: GraphProto, op_type: str) -> NodeProto:
    return [node for node in graph.node if node.op_type == op_type][-1]


def recast(graph: GraphProto, node: NodeProto, to: int, back: int, *, operand: int = 0) -> None:
    """Makes one operator read an operand in another type, and gives its result back in the old one."""
    result = node.output[0]
    into = helper.make_node("Cast", [node.input[operand]], ["lowered"], name="lowered", to=to)
    node.input[operand] = "lowered"
    node.output[0] = "low_result"
    out = helper.make_node("Cast", ["low_result"], [result], name="raised", to=back)
    at = list(graph.node).index(node)
    graph.node.insert(at, into)
    graph.node.insert(at + 2, out)


def lower_a_norm(graph: GraphProto) -> str:
    norm = first(graph, "RMSNormalization")
    gain = next(tensor for tensor in graph.initializer if tensor.name == norm.input[1])
    lowered = onnx.numpy_helper.to_array(gain).astype("float16")
    graph.initializer.append(onnx.numpy_helper.from_array(lowered, "low_gain"))
    recast(graph, norm, HALF, FLOAT)
    norm.input[1] = "low_gain"
    return f"{norm.name} (RMSNormalization) runs in float16"


def lower_the_activation(graph: GraphProto) -> str:
    activation = first(graph, "Sigmoid")
    recast(graph, activation, BF16, FLOAT)
    return f"{activation.name} (Sigmoid) runs in bfloat16 and belongs to fp32"


def lower_what_follows_the_last_hidden_state(graph: GraphProto) -> str:
    gather = last(graph, "GatherElements")
    recast(graph, gather, BF16, FLOAT)
    return f"{gather.name} (GatherElements) runs in bfloat16 after the last hidden state"


def cast_there_and_back(graph: GraphProto) -> str:
    norm = last(graph, "RMSNormalization")
    at = list(graph.node).index(norm)
    graph.node.insert(at, helper.make_node("Cast", [norm.input[0]], ["down"], name="down", to=BF16))
    graph.node.insert(at + 1, helper.make_node("Cast", ["down"], ["up"], name="up", to=FLOAT))
    norm.input[0] = "up"
    return "down and up cancel: float to bfloat16 and back"


def cast_to_itself(graph: GraphProto) -> str:
    norm = last(graph, "RMSNormalization")
    graph.node.insert(
        list(graph.node).index(norm), helper.make_node("Cast", [norm.input[0]], ["same"], name="same", to=FLOAT)
    )
    norm.input[0] = "same"
    return "same casts float to itself"


@pytest.mark.parametrize(
    "spoil",
    [
        lower_a_norm,
        lower_the_activation,
        lower_what_follows_the_last_hidden_state,
        cast_there_and_back,
        cast_to_itself,
    ],
)
def test_each_fault_is_named(bf16: Path, spoil: Callable[[GraphProto], str]) -> None:
    assert precision_faults(bf16, Precision.BF16) == ()
    model = onnx.load(bf16)
    fault = spoil(model.graph)
    onnx.save(model, bf16)
    assert fault in precision_faults(bf16, Precision.BF16)
    with pytest.raises(ExportError) as refusal:
        refuse_wrong_types(bf16, Precision.BF16)
    assert str(refusal.value).endswith("this backbone cannot be typed bf16; export with --runtime torch or cpu")


def test_a_graph_of_another_precision_is_all_faults(bf16: Path) -> None:
    for precision in (Precision.FP32, Precision.FP16):
        faults = precision_faults(bf16, precision)
        assert len(faults) > 10
        assert any("(MatMul) runs in bfloat16" in fault for fault in faults)


def test_types_that_do_not_go_together_are_a_fault(bf16: Path) -> None:
    model = onnx.load(bf16)
    product = first(model.graph, "MatMul")
    product.input[0] = first(model.graph, "RMSNormalization").output[0]
    onnx.save(model, bf16)
    (fault,) = precision_faults(bf16, Precision.BF16)
    assert product.name in fault


def test_what_is_written_is_checked(traced: TypedGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lower_and_round_the_residual_stream(model: ir.Model, precision: Precision) -> None:
        lower(model, precision)
        norm = final_norm(model.graph)
        down = ir.node("Cast", [norm.inputs[0]], {"to": BF16}, name="down")
        up = ir.node("Cast", [down.outputs[0]], {"to": FLOAT}, name="up")
        model.graph.insert_before(norm, [down, up])
        norm.replace_input_with(0, up.outputs[0])

    monkeypatch.setattr(typed_graphs, "lower", lower_and_round_the_residual_stream)
    with pytest.raises(ExportError, match="down and up cancel: float to bfloat16 and back: this backbone cannot be"):
        traced.write(Precision.BF16, tmp_path)
