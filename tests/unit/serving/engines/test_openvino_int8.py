"""OpenVINO's int8 against the same rounding in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resrank.core.cpu import has_vnni
from resrank.serving.engines import EngineError, EngineKind, EngineOptions, Precision, load_engine
from resrank.serving.engines import openvino as engine_module

pytest.importorskip("openvino", reason="the extra 'cpu' is not installed")

INT8 = EngineOptions(EngineKind.OPENVINO, Precision.INT8, threads=1)
needs_vnni = pytest.mark.skipif(not has_vnni(), reason="this CPU has no VNNI instructions")


def product_graph(folder: Path, *matrices: NDArray[np.float32]) -> Path:
    """An ONNX graph of x @ matrix for each matrix, all of x's own width: x FP32 [B, S, width] to y0, y1, …"""
    names = [f"y{number}" for number in range(len(matrices))]
    inputs = [f"x{number}" for number in range(len(matrices))]
    nodes = [
        helper.make_node("MatMul", [x, f"w{number}"], [y])
        for number, (x, y) in enumerate(zip(inputs, names, strict=True))
    ]
    graph = helper.make_graph(
        nodes,
        "products",
        [
            helper.make_tensor_value_info(x, TensorProto.FLOAT, ["b", "s", matrix.shape[0]])
            for x, matrix in zip(inputs, matrices, strict=True)
        ],
        [
            helper.make_tensor_value_info(y, TensorProto.FLOAT, ["b", "s", matrix.shape[1]])
            for y, matrix in zip(names, matrices, strict=True)
        ],
        [numpy_helper.from_array(matrix, f"w{number}") for number, matrix in enumerate(matrices)],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


GROUP = 32


def rounded_matrix(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """256 levels between the least and the greatest number of each 32 in a column, of which 0 is one."""
    rounded = np.empty_like(matrix)
    for column in range(matrix.shape[1]):
        for start in range(0, len(matrix), GROUP):
            part = matrix[start : start + GROUP, column]
            low, high = min(part.min(), 0.0), max(part.max(), 0.0)
            step = (high - low) / 255 or 1.0
            zero = np.rint(-low / step)
            rounded[start : start + GROUP, column] = (np.clip(np.rint(part / step) + zero, 0, 255) - zero) * step
    return rounded


def rounded_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """127 levels to either side of 0, by the largest magnitude of each 32 in a row."""
    parts = rows.reshape(*rows.shape[:-1], -1, GROUP)
    step = np.abs(parts).max(axis=-1, keepdims=True) / 127
    return (np.rint(parts / step) * step).reshape(rows.shape).astype(np.float32)


@needs_vnni
def test_matrices_and_activations_are_rounded_as_told(tmp_path: Path) -> None:
    """Both are: with the matrix alone rounded, as without VNNI, the result lies a thousand times further off."""
    rng = np.random.default_rng(0)
    narrow = rng.standard_normal((64, 48)).astype(np.float32)
    wide = rng.standard_normal((192, 32)).astype(np.float32)
    narrow[0, 0], wide[:, 3] = 3.0, 0.0
    x = [rng.standard_normal((2, 5, width)).astype(np.float32) for width in (64, 192)]
    x[0][..., 3] *= 6
    found = load_engine(product_graph(tmp_path, narrow, wide), INT8).run({"x0": x[0], "x1": x[1]})

    for number, matrix in enumerate((narrow, wide)):
        expected = rounded_rows(x[number]) @ rounded_matrix(matrix)
        np.testing.assert_allclose(found[f"y{number}"], expected, atol=1e-3)
        assert np.abs(found[f"y{number}"] - x[number] @ matrix).max() > 1e-2


@needs_vnni
def test_a_width_that_cannot_be_cut_into_groups_is_refused(tmp_path: Path) -> None:
    graph = product_graph(tmp_path, np.ones((64, 8), np.float32), np.ones((48, 8), np.float32))
    with pytest.raises(EngineError, match=r"a matrix is 48 wide, no multiple of 32: export with --precision fp32"):
        load_engine(graph, INT8)


def test_a_cpu_without_vnni_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "has_vnni", lambda: False)
    with pytest.raises(EngineError, match=r"^this CPU has no VNNI instructions, which int8 needs: export with"):
        load_engine(tmp_path / "model.onnx", INT8)


def test_fp16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^openvino on a CPU does not compute in fp16"):
        load_engine(tmp_path / "model.onnx", EngineOptions(EngineKind.OPENVINO, Precision.FP16))
