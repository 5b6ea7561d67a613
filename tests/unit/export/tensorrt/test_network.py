"""What TensorRT's own parser makes of a graph, and what it says of graphs that it does not take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from resrank.core.errors import ExportError
from resrank.export.tensorrt import EngineBuilder
from resrank.serving.engines import Precision

FLOAT, HALF, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BOOL
SaveGraph = Callable[..., Path]
ROWS = {"x": (FLOAT, ["batch", 8])}
PRODUCT = {
    "q": (FLOAT, ["batch", 2, "tokens", 16]),
    "k": (FLOAT, ["batch", 2, 16, "tokens"]),
    "v": (FLOAT, ["batch", 2, "tokens", 16]),
    "mask": (FLOAT, ["batch", 1, "tokens", "tokens"]),
    "keep": (BOOL, ["batch", 1, "tokens", "tokens"]),
}
OUT = {"y": (FLOAT, ["batch", 2, "tokens", 16])}


def constant(name: str, value: float) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype=np.float32), name)


def node(op: str, inputs: str, output: str, name: str, **attributes: object) -> NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=name, **attributes)


def test_an_attention_operator_is_one_layer(rtx: EngineBuilder, save_attention: Callable[[Precision], Path]) -> None:
    summary = rtx.inspect(save_attention(Precision.BF16))
    assert summary.layers.attention == 1
    assert (summary.layers.matmul, summary.layers.softmax) == (0, 0)
    assert summary.unfused_attention == ()


def test_layers_are_counted_by_kind(rtx: EngineBuilder, save_graph: SaveGraph) -> None:
    # Two products, a norm, a conversion there and back, a softmax over classes: no attention, fused or not.
    weights = [
        numpy_helper.from_array(np.ones((8, 8), dtype=np.float32), "w"),
        numpy_helper.from_array(np.ones(8, dtype=np.float32), "scale"),
    ]
    nodes = [
        node("LayerNormalization", "x scale", "normed", "norm", axis=-1),
        node("MatMul", "normed w", "hidden", "up"),
        node("Cast", "hidden", "low", "lower", to=HALF),
        node("Cast", "low", "high", "raise", to=FLOAT),
        node("MatMul", "high w", "logits", "down"),
        node("Softmax", "logits", "y", "classes", axis=-1),
    ]
    summary = rtx.inspect(save_graph(nodes, ROWS, {"y": (FLOAT, ["batch", 8])}, tuple(weights)))
    layers = summary.layers
    assert (layers.attention, layers.normalization, layers.matmul, layers.softmax, layers.cast) == (0, 1, 2, 1, 2)
    assert layers.total == 6 + sum(layers.other.values())
    assert summary.unfused_attention == ()


@pytest.mark.parametrize(
    ("between", "into_values"),
    [
        ([], []),
        ([node("Mul", "scores factor", "masked", "scale")], []),
        ([node("Mul", "scores factor", "t", "scale"), node("Add", "t mask", "masked", "mask")], []),
        # torch's guard against rows without any key, and its conversions around softmax.
        (
            [node("Where", "keep scores lowest", "t", "mask"), node("Cast", "t", "masked", "up", to=FLOAT)],
            [
                node("IsNaN", "probabilities", "nan", "isnan"),
                node("Where", "nan zero probabilities", "kept", "guard"),
            ],
        ),
    ],
    ids=["bare", "scaled", "additive-mask", "guarded"],
)
def test_attention_in_pieces_is_found(
    rtx: EngineBuilder, save_graph: SaveGraph, between: list[NodeProto], into_values: list[NodeProto]
) -> None:
    nodes = [
        node("MatMul", "q k", "scores", "/attention/scores"),
        *between,
        node("Softmax", "masked" if between else "scores", "probabilities", "/attention/softmax", axis=-1),
        *into_values,
        node("MatMul", "kept v" if into_values else "probabilities v", "y", "/attention/values"),
    ]
    read = {name for each in nodes for name in each.input}
    inputs = {name: form for name, form in PRODUCT.items() if name in read}
    constants = [constant("factor", 0.25), constant("lowest", -1e9), constant("zero", 0.0)]
    graph = save_graph(nodes, inputs, OUT, tuple(tensor for tensor in constants if tensor.name in read))
    (chain,) = rtx.inspect(graph).unfused_attention
    assert chain == "/attention/scores -> /attention/softmax -> /attention/values"


def test_attention_in_pieces_is_found_beside_whole_attention(rtx: EngineBuilder, save_graph: SaveGraph) -> None:
    nodes = [
        node("Attention", "q v v", "whole", "whole", is_causal=1),
        node("MatMul", "whole k", "scores", "scores"),
        node("Softmax", "scores", "probabilities", "softmax", axis=-1),
        node("MatMul", "probabilities v", "y", "values"),
    ]
    inputs = {name: PRODUCT[name] for name in "qkv"}
    summary = rtx.inspect(save_graph(nodes, inputs, OUT))
    assert summary.layers.attention == 1
    assert summary.unfused_attention == ("scores -> softmax -> values",)


@pytest.mark.parametrize(
    ("nodes", "element", "complaint"),
    [
        (
            [node("Relu", "x", "t", "first"), helper.make_node("Blend", ["t"], ["y"], name="odd", domain="elsewhere")],
            FLOAT,
            r"at node 'odd' \(Blend\): Plugin not found",
        ),
        ([node("Det", "x", "y", "det")], FLOAT, r"at node 'det' \(Det of FLOAT\): it has no such operator"),
        ([node("Add", "x half", "y", "mixed")], FLOAT, r"at node 'mixed' \(Add of FLOAT, FLOAT16\): .*types Float and"),
        ([node("Identity", "x", "y", "copy")], TensorProto.STRING, r"Failed to convert ONNX date type"),
    ],
    ids=["foreign-operator", "unsupported-operator", "mixed-types", "unsupported-type"],
)
def test_a_graph_that_tensorrt_does_not_take_is_refused_with_the_node(
    rtx: EngineBuilder, save_graph: SaveGraph, nodes: list[NodeProto], element: int, complaint: str
) -> None:
    half = numpy_helper.from_array(np.ones((4, 4), dtype=np.float16), "half")
    path = save_graph(nodes, {"x": (element, ["batch", 4, 4])}, {"y": (FLOAT, ["batch", 4, 4])}, (half,))
    with pytest.raises(ExportError, match=complaint) as caught:
        rtx.inspect(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: TensorRT for RTX {rtx.version} does not take the graph")
    assert message.endswith("choose a backbone of a supported family")
    assert "\n" not in message
    assert "cuda" not in message.lower()  # the missing driver is not the reason


def test_a_refused_graph_leaves_no_trace_in_the_next_message(
    rtx: EngineBuilder, save_graph: SaveGraph, tmp_path: Path
) -> None:
    graph = save_graph([node("Det", "x", "y", "det")], {"x": (FLOAT, ["batch", 4, 4])}, {"y": (FLOAT, ["batch"])})
    with pytest.raises(ExportError, match="det"):
        rtx.inspect(graph)
    with pytest.raises(ExportError, match="no such file; export the graph first"):
        rtx.inspect(tmp_path / "none.onnx")


@pytest.mark.parametrize("kept", [0, 0.5, 0.98])
def test_a_truncated_graph_is_refused(
    rtx: EngineBuilder, save_attention: Callable[[Precision], Path], kept: float
) -> None:
    path = save_attention(Precision.BF16)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ExportError) as caught:
        rtx.inspect(path)
    size = int(kept * len(whole))
    assert str(caught.value) == f"{path}: {size} bytes that are no whole ONNX graph; export it again"


def test_a_file_of_another_kind_is_refused(rtx: EngineBuilder, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    with pytest.raises(ExportError, match="43 bytes that are no whole ONNX graph; export it again"):
        rtx.inspect(path)


@pytest.fixture
def external(save_graph: SaveGraph) -> Path:
    """A graph whose one weight lies in ``graph.onnx.data``."""
    weight = numpy_helper.from_array(np.ones((8, 8), dtype=np.float32), "w")
    path = save_graph([node("MatMul", "x w", "y", "product")], ROWS, {"y": (FLOAT, ["batch", 8])}, (weight,))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    return path


def test_external_data_is_found_beside_the_graph(rtx: EngineBuilder, external: Path) -> None:
    assert rtx.inspect(external).layers.matmul == 1


@pytest.mark.parametrize(("kept", "complaint"), [(None, "graph.onnx.data"), (100, "file size=100")])
def test_missing_external_data_is_refused(rtx: EngineBuilder, external: Path, kept: int | None, complaint: str) -> None:
    data = external.with_name(f"{external.name}.data")
    if kept is None:
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:kept])
    with pytest.raises(
        ExportError, match=rf"its external data is missing or cut short \(.*{complaint}.*export it again"
    ):
        rtx.inspect(external)
