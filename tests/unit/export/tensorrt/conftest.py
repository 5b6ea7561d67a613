"""Small graphs for TensorRT's parser and builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from resrank.serving.engines import Precision

ELEMENT = {Precision.FP32: TensorProto.FLOAT, Precision.FP16: TensorProto.FLOAT16, Precision.BF16: TensorProto.BFLOAT16}
Form = tuple[int, list[int | str]]


@pytest.fixture
def save_graph(tmp_path: Path) -> Callable[..., Path]:
    """Writes nodes as ``graph.onnx``; inputs and outputs are name to element type and shape."""

    def save(
        nodes: list[onnx.NodeProto],
        inputs: dict[str, Form],
        outputs: dict[str, Form],
        initializers: tuple[onnx.TensorProto, ...] = (),
    ) -> Path:
        def values(tensors: dict[str, Form]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(tensor, *form) for tensor, form in tensors.items()]

        graph = helper.make_graph(nodes, "graph", values(inputs), values(outputs), list(initializers))
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("elsewhere", 1)]
        path = tmp_path / "graph.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return path

    return save


@pytest.fixture
def save_attention(save_graph: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a causal ``Attention`` of two heads; its inputs are q, k and v."""

    def save(precision: Precision, *, head_size: int = 16) -> Path:
        form: Form = (ELEMENT[precision], ["batch", 2, "tokens", head_size])
        node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="attention", is_causal=1)
        return save_graph([node], dict.fromkeys("qkv", form), {"y": form})

    return save


@pytest.fixture(scope="session")
def attention_profile() -> dict[str, tuple[tuple[int, ...], ...]]:
    """Shapes for ``save_attention``."""
    return dict.fromkeys("qkv", ((1, 2, 2, 16), (2, 2, 8, 16), (4, 2, 32, 16)))
