from __future__ import annotations

from pathlib import Path

import pytest

from resrank.engines.base import EngineKind
from resrank.plan_header import PlanError, PlanHeader, read_plan_header


@pytest.fixture(scope="module")
def rtx_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real plan: one ReLU."""
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs resrank[tensorrt-rtx]")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    layer = network.add_activation(network.add_input("x", trt.float32, (2, 4)), trt.ActivationType.RELU)
    network.mark_output(layer.get_output(0))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    path = tmp_path_factory.mktemp("plan") / "model.plan"
    path.write_bytes(bytes(builder.build_serialized_network(network, config)))
    return path


def test_a_plan_tells_its_flavour_and_version(rtx_plan: Path) -> None:
    import tensorrt_rtx_bindings as trt

    assert read_plan_header(rtx_plan) == PlanHeader(EngineKind.TENSORRT_RTX, trt.__version__)


def test_tensorrts_own_tag(tmp_path: Path) -> None:
    """No TensorRT here writes one, so these are the bytes that its samples read: tag, serialization, ..., version."""
    (tmp_path / "model.plan").write_bytes(b"ftrt" + bytes(20) + bytes([11, 4, 0, 106]) + bytes(100))
    assert read_plan_header(tmp_path / "model.plan") == PlanHeader(EngineKind.TENSORRT, "11.4.0.106")


@pytest.mark.parametrize("length", [0, 3, 27])
def test_the_beginning_of_a_plan_is_none(rtx_plan: Path, tmp_path: Path, length: int) -> None:
    (tmp_path / "model.plan").write_bytes(rtx_plan.read_bytes()[:length])
    with pytest.raises(PlanError, match=r"model\.plan: is no TensorRT plan, or only the beginning of one: build it ag"):
        read_plan_header(tmp_path / "model.plan")


def test_other_files_are_no_plans(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"\x08\x0a\x12\x07pytorch" * 10)
    with pytest.raises(PlanError, match="is no TensorRT plan"):
        read_plan_header(tmp_path / "model.plan")
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan_header(tmp_path / "none.plan")
