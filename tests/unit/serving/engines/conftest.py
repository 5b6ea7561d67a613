"""A real plan, built in seconds by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.tiny_plan import build_plan


@pytest.fixture(scope="session")
def trt() -> Any:
    """The bindings of TensorRT-RTX."""
    return pytest.importorskip("tensorrt_rtx_bindings", reason="needs resrank[tensorrt-rtx]")


@pytest.fixture(scope="session")
def plan(trt: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of :func:`build_plan` for compute capability 8.9."""
    path = tmp_path_factory.mktemp("plan") / "model.plan"
    path.write_bytes(build_plan(trt, trt.ComputeCapability.SM89))
    return path
