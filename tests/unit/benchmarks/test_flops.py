from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resrank.benchmarks.flops import GraphSize, matrix_parameters
from resrank.export.onnx_graphs import export_reranker
from resrank.model.modeling import ResRankModel
from support.tiny_checkpoint import make_tiny_checkpoint


def test_flops_against_a_hand_worked_example() -> None:
    # 2 * 1000 * 10 for the weights; in each of 3 layers 4 * 10 * 10 * 8 for attention
    assert GraphSize(parameters=1000, layers=3, hidden_size=8).flops(10) == 20_000 + 9_600


def test_only_constant_matrices_of_products_count_and_shared_ones_at_each_use(tmp_path: Path) -> None:
    def constant(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(np.ones(shape, np.float32), name)

    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),  # the embedding table is looked up
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Transpose", ["b"], ["bt"]),
        helper.make_node("MatMul", ["b", "bt"], ["attention"]),  # two activations: counted by length, not here
        helper.make_node("MatMul", ["attention", "b"], ["c"]),
        helper.make_node("Mul", ["c", "norm"], ["d"]),  # a norm's scale is no product of matrices
        helper.make_node("MatMul", ["d", "out"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "hand-made",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["s"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["s", 3])],
        [constant("table", 50, 4), constant("w", 4, 4), constant("norm", 4), constant("out", 4, 3)],
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    assert matrix_parameters(tmp_path / "model.onnx") == 16 + 16 + 12


@pytest.mark.usefixtures("shared_traces")
@pytest.mark.parametrize("hidden_size", [48, 32])
def test_parameters_of_an_exported_reranker(tmp_path: Path, hidden_size: int) -> None:
    make_tiny_checkpoint(tmp_path / "checkpoint", embedding_dim=32, hidden_size=hidden_size)
    model = ResRankModel.from_checkpoint(tmp_path / "checkpoint")
    h, layers, wide = hidden_size, 2, 2 * hidden_size
    query_and_output, key_and_value, mlp = 2 * h * h, 2 * h * (h // 2), 3 * h * wide  # four heads, two of keys
    projectors = 2 * 32 * 48 if h == 48 else 0
    expected = layers * (query_and_output + key_and_value + mlp) + projectors
    assert matrix_parameters(export_reranker(model, tmp_path / "graph")) == expected
