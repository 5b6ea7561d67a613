"""Engines built without a GPU, and what is said when one cannot be built."""

from __future__ import annotations

import hashlib
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resrank.core.errors import ExportError
from resrank.export.tensorrt import EngineBuilder
from resrank.export.typed_precision import LOW_TYPES
from resrank.serving.engines import EngineKind, Precision

SaveAttention = Callable[..., Path]
Shapes = dict[str, tuple[tuple[int, ...], ...]]


@pytest.mark.parametrize("precision", [Precision.FP32, *LOW_TYPES])
def test_an_engine_is_built_for_each_capability(
    rtx: EngineBuilder, save_attention: SaveAttention, attention_profile: Shapes, precision: Precision, tmp_path: Path
) -> None:
    plans = {80: tmp_path / "plans" / "model.sm80.plan", 89: tmp_path / "plans" / "model.sm89.plan"}
    built = rtx.build_each(save_attention(precision), [attention_profile], plans)
    assert [plan.compute_capability for plan in built] == [80, 89]
    for plan in built:
        content = plan.path.read_bytes()
        assert plan.path == plans[plan.compute_capability]
        assert (plan.bytes, plan.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert (plan.flavour, plan.version) == (EngineKind.TENSORRT_RTX, rtx.version)
        assert plan.layers.attention == 1
        # TensorRT has dedicated attention kernels for 16-bit types only.
        assert plan.fused_attention is (precision is not Precision.FP32)
        # What the plan says itself: its size, its builder's version, and a bit for SM80 (2) or SM89 (8).
        assert struct.unpack_from("<Q", content, 16) == (len(content),)
        assert ".".join(map(str, content[24:28])) == rtx.version
        assert content[32] == {80: 2, 89: 8}[plan.compute_capability]
    assert sorted(path.name for path in plans[80].parent.iterdir()) == ["model.sm80.plan", "model.sm89.plan"]


def test_attention_without_a_dedicated_kernel_is_built_and_told_apart(
    rtx: EngineBuilder, save_attention: SaveAttention, tmp_path: Path
) -> None:
    graph = save_attention(Precision.FP16, head_size=8)  # measured: no kernel has heads that small
    profile = dict.fromkeys("qkv", ((1, 2, 2, 8), (2, 2, 8, 8), (4, 2, 32, 8)))
    (plan,) = rtx.build_each(graph, [profile], {89: tmp_path / "model.plan"})
    assert not plan.fused_attention


def test_a_plan_may_have_several_profiles(
    rtx: EngineBuilder, save_attention: SaveAttention, attention_profile: Shapes, tmp_path: Path
) -> None:
    wide = dict.fromkeys("qkv", ((1, 2, 2, 16), (8, 2, 64, 16), (16, 2, 512, 16)))
    graph = save_attention(Precision.BF16)
    (one,) = rtx.build_each(graph, [attention_profile], {89: tmp_path / "one.plan"})
    (two,) = rtx.build_each(graph, [attention_profile, wide], {89: tmp_path / "two.plan"})
    assert two.bytes > one.bytes


def test_a_build_reports_its_phases(
    rtx: EngineBuilder, save_attention: SaveAttention, attention_profile: Shapes, tmp_path: Path
) -> None:
    phases: list[str] = []
    builder = EngineBuilder(notify=phases.append)
    builder.build_each(save_attention(Precision.BF16), [attention_profile], {89: tmp_path / "model.plan"})
    assert len(phases) == len(set(phases)) > 1


def test_a_workspace_too_small_for_any_kernel_is_named(
    rtx: EngineBuilder, save_attention: SaveAttention, attention_profile: Shapes, tmp_path: Path
) -> None:
    class Cramped(EngineBuilder):
        def _configure(self, *arguments: Any) -> Any:
            config = super()._configure(*arguments)
            config.set_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE, 1)
            return config

    with pytest.raises(
        ExportError, match=r"graph\.onnx: TensorRT for RTX .* cannot build the engine: .*workspace limit"
    ):
        Cramped().build_each(save_attention(Precision.FP32), [attention_profile], {89: tmp_path / "model.plan"})


def test_an_existing_plan_is_replaced_only_by_a_finished_one(
    rtx: EngineBuilder, save_attention: SaveAttention, attention_profile: Shapes, tmp_path: Path
) -> None:
    out = tmp_path / "model.plan"
    out.write_bytes(b"the plan before")
    graph = save_attention(Precision.BF16)
    # The file that the plan is written to first, on a device that is always full.
    (tmp_path / ".model.plan.partial").symlink_to("/dev/full")
    with pytest.raises(ExportError, match=r"model\.plan: no space: it needs at least \d+ MB and \d+ MB are free"):
        rtx.build_each(graph, [attention_profile], {89: out})
    assert out.read_bytes() == b"the plan before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.onnx", "model.plan"]
    rtx.build_each(graph, [attention_profile], {89: out})
    assert out.stat().st_size > 100_000


def test_a_place_that_cannot_be_written_is_named(
    rtx: EngineBuilder, save_attention: SaveAttention, attention_profile: Shapes, tmp_path: Path
) -> None:
    (tmp_path / "plans").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(
        ExportError, match=r"plans/model\.plan: cannot be written \(.*\); choose another place with --out"
    ):
        rtx.build_each(save_attention(Precision.BF16), [attention_profile], {89: tmp_path / "plans" / "model.plan"})


def test_a_full_disk_is_seen_before_the_build(
    rtx: EngineBuilder,
    save_attention: SaveAttention,
    attention_profile: Shapes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = save_attention(Precision.BF16)
    graph.with_name("graph.onnx.data").write_bytes(bytes(3_000_000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    with pytest.raises(ExportError) as caught:
        rtx.build_each(graph, [attention_profile], {89: tmp_path / "model.plan"})
    assert str(caught.value) == (
        f"{tmp_path}/model.plan: no space: it needs at least 3 MB and 2 MB are free; make room, or choose another "
        "place with --out"
    )


@pytest.mark.parametrize("capability", [61, 90, 100])
def test_a_capability_that_the_flavour_cannot_build_for_is_refused_with_those_it_can(
    rtx: EngineBuilder, save_attention: SaveAttention, attention_profile: Shapes, capability: int, tmp_path: Path
) -> None:
    assert {75, 80, 86, 89, 120} <= set(rtx.capabilities)
    for attempt in (
        lambda: rtx.require(capability),
        lambda: rtx.build_each(
            save_attention(Precision.BF16), [attention_profile], {capability: tmp_path / "model.plan"}
        ),
    ):
        with pytest.raises(ExportError) as caught:
            attempt()
        possible = ", ".join(map(str, rtx.capabilities))
        assert str(caught.value) == (
            f"TensorRT for RTX {rtx.version} does not build for compute capability {capability}, only for {possible}: "
            "choose one of these, or --runtime tensorrt, which builds on the GPU itself"
        )
    assert not (tmp_path / "model.plan").exists()


@pytest.mark.parametrize(
    ("profiles", "complaint"),
    [
        ([], "no optimisation profile is given"),
        (
            [dict.fromkeys("qkv", ((1, 2, 2, 16), (2, 2, 64, 16), (4, 2, 32, 16)))],
            "profile 0: axis 2 of q: min 2, opt 64, max 32; they must ascend and start at 1 or above",
        ),
        (
            [dict.fromkeys("qkv", ((0, 2, 2, 16), (2, 2, 8, 16), (4, 2, 32, 16)))],
            "profile 0: axis 0 of q: min 0, opt 2, max 4; they must ascend and start at 1 or above",
        ),
        (
            [dict.fromkeys("qkv", ((1, 2, 2, 24), (2, 2, 8, 24), (4, 2, 32, 24)))],
            r"profile 0 has q \[1, 2, 2, 24\] as min, but the graph takes \['any', 2, 'any', 16\]",
        ),
        (
            [dict.fromkeys("qkv", ((1, 2), (2, 2), (4, 2)))],
            r"profile 0 has q \[1, 2\] as min, but the graph takes \['any', 2, 'any', 16\]",
        ),
        (
            [dict.fromkeys("qk", ((1, 2, 2, 16), (2, 2, 8, 16), (4, 2, 32, 16)))],
            "profile 0 is for inputs k, q, but the graph has k, q, v",
        ),
    ],
    ids=["none", "unordered", "zero", "other-sizes", "other-rank", "missing-input"],
)
def test_wrong_profiles_are_refused_before_the_build(
    rtx: EngineBuilder, save_attention: SaveAttention, profiles: list[Shapes], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=complaint):
        rtx.build_each(save_attention(Precision.BF16), profiles, {89: tmp_path / "model.plan"})
    assert not (tmp_path / "model.plan").exists()


def test_an_interrupted_build_stops_and_leaves_nothing(
    rtx: EngineBuilder, save_attention: SaveAttention, attention_profile: Shapes, tmp_path: Path
) -> None:
    def press_ctrl_c(_: str) -> None:
        raise KeyboardInterrupt

    builder = EngineBuilder(notify=press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        builder.build_each(save_attention(Precision.BF16), [attention_profile], {89: tmp_path / "model.plan"})
    assert [path.name for path in tmp_path.iterdir()] == ["graph.onnx"]


def test_a_builder_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)  # what Python answers with an ImportError
    with pytest.raises(ExportError, match=r"^tensorrt_rtx is not installed .*pip install .*\[tensorrt-rtx\]'?$"):
        EngineBuilder()
