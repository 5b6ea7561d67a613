"""What typing decides, seen from outside: ranges that fp16 does not have, and products that are not known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from resrank.core.checkpoint import RERANKER_DIR
from resrank.core.errors import ExportError
from resrank.core.names import Model
from resrank.core.tokenization import PromptTokenizer
from resrank.export.parity import ParityGate, parity_table
from resrank.export.typed_graphs import TypedGraph
from resrank.export.typed_parity import check_typed
from resrank.export.typed_precision import lower
from resrank.model.modeling import ResRankModel
from resrank.serving.engines import Precision
from support.tiny_checkpoint import make_tiny_checkpoint

FP16_MAX = float(np.finfo(np.float16).max)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    make_tiny_checkpoint(tmp_path / "tiny", embedding_dim=32, hidden_size=64)
    return tmp_path / "tiny"


def test_activations_beyond_fp16_do_not_overflow(checkpoint: Path, tmp_path: Path) -> None:
    """The MLP's second product reads values as models of the Qwen family have them at attention sinks."""
    model = ResRankModel.from_checkpoint(checkpoint)
    largest: list[float] = []
    for layer in model.reranker.layers:
        with torch.no_grad():
            layer.mlp.gate_proj.weight *= 10
            layer.mlp.up_proj.weight *= 1e3  # within fp16 itself, as is what it is undone by
            layer.mlp.down_proj.weight /= 1e3
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _module, inputs: largest.append(float(inputs[0].abs().max()))
        )
    layout = PromptTokenizer(checkpoint / RERANKER_DIR, model.spec.reranker).layout
    gate = ParityGate(model, layout)
    assert max(largest) > 2 * FP16_MAX
    graph = TypedGraph.trace(model, Model.RERANKER).write(Precision.FP16, tmp_path / "graph")
    parity = check_typed(gate, Model.RERANKER, graph, Precision.FP16)
    assert parity.passed, parity_table([parity])


def small_graph(*nodes: onnx.NodeProto, weight: float = 1.0) -> ir.Model:
    """A graph that ends in a norm, as every backbone's does."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 16])
    norm = helper.make_node("RMSNormalization", ["hidden", "gain"], ["y"], name="norm")
    weights = [
        numpy_helper.from_array(np.full((16, 16), weight, np.float32), "w"),
        numpy_helper.from_array(np.ones(16, np.float32), "gain"),
    ]
    graph = helper.make_graph([*nodes, norm], "graph", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (
            [helper.make_node("Gemm", ["x", "w"], ["hidden"], name="gemm")],
            "gemm: a product by Gemm is not supported in typed graphs",
        ),
        (
            [
                helper.make_node("Transpose", ["x"], ["xt"], name="turn", perm=[1, 0]),
                helper.make_node("MatMul", ["x", "xt"], ["hidden"], name="scores"),
            ],
            "scores: a product of two activations outside an Attention operator",
        ),
    ],
    ids=["gemm", "two-activations"],
)
def test_a_product_of_an_unknown_kind_is_refused(nodes: list[onnx.NodeProto], said: str) -> None:
    with pytest.raises(ExportError) as refusal:
        lower(small_graph(*nodes), Precision.BF16)
    assert str(refusal.value).startswith(said)


@pytest.mark.parametrize(("precision", "written"), [(Precision.FP16, False), (Precision.BF16, True)])
def test_a_weight_beyond_fp16_is_refused_when_it_is_written(
    precision: Precision, written: bool, tmp_path: Path
) -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["hidden"], name="product")
    model = small_graph(product, weight=70_000)
    lower(model, precision)
    if written:
        ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data")
        return
    with pytest.raises(ExportError, match=r"^w: a weight of 70000 is beyond fp16's 65504: export with bf16 or fp32$"):
        ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data")
