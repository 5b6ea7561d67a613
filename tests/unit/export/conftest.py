"""TensorRT-RTX, which needs no GPU to build."""

from __future__ import annotations

import importlib.util

import pytest

from resrank.export.tensorrt import EngineBuilder


@pytest.fixture(scope="session", autouse=True)
def no_graph_is_traced_twice(shared_traces: None) -> None:
    """No graph is traced twice."""


@pytest.fixture(scope="session")
def rtx() -> EngineBuilder:
    if not any(importlib.util.find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings")):
        pytest.skip("TensorRT-RTX is not installed: pip install 'resrank[tensorrt-rtx]'")
    return EngineBuilder()
