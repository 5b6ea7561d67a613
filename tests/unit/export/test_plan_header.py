"""What a plan's own bytes say is said before any runtime is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resrank.export.plan_header import read_plan_header
from resrank.serving.engines.base import EngineError, EngineKind
from support.tiny_plan import build_plan


@pytest.fixture(scope="module")
def trt() -> Any:
    """The bindings of TensorRT-RTX, which builds a real plan in seconds and needs no GPU for it."""
    return pytest.importorskip("tensorrt_rtx_bindings", reason="needs resrank[tensorrt-rtx]")


@pytest.fixture(scope="module")
def plan(trt: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "model.plan"
    path.write_bytes(build_plan(trt, trt.ComputeCapability.SM89))
    return path


def test_the_header_says_who_built_the_plan(plan: Path, trt: Any, tmp_path: Path) -> None:
    header = read_plan_header(plan)
    assert header.flavour is EngineKind.TENSORRT_RTX
    assert ".".join(map(str, header.version)) == trt.__version__
    # The tag and the version as trtexec reads them in TensorRT's own plans.
    production = changed(plan, tmp_path, 0, b"ftrt")
    assert read_plan_header(production).flavour is EngineKind.TENSORRT


def changed(plan: Path, tmp_path: Path, place: int, new: bytes) -> Path:
    content = bytearray(plan.read_bytes())
    content[place : place + len(new)] = new
    path = tmp_path / "changed.plan"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (slice(0, -1), r"bytes of \d+, so it is cut short"),
        (slice(0, 20), "20 bytes are no whole"),
        (slice(0, 0), "0 bytes"),
    ],
)
def test_a_truncated_plan_is_refused(plan: Path, tmp_path: Path, keep: slice, message: str) -> None:
    cut = tmp_path / "cut.plan"
    cut.write_bytes(plan.read_bytes()[keep])
    with pytest.raises(EngineError, match=message):
        read_plan_header(cut)


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(EngineError, match="not a TensorRT plan"):
        read_plan_header(tmp_path / "model.plan")
    with pytest.raises(EngineError, match="cannot be read: No such file or directory"):
        read_plan_header(tmp_path / "missing.plan")
