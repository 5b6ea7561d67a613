"""Where TensorRT-RTX's compiled kernels are kept, and what happens where nothing can be kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resrank.serving.engines.runtime_cache import cache_file, write_cache


def test_each_plan_and_each_gpu_has_a_file_of_its_own(tmp_path: Path) -> None:
    plan, other = tmp_path / "model.plan", tmp_path / "other.plan"
    plan.write_bytes(b"plan")
    other.write_bytes(b"plan")
    file = cache_file(tmp_path, plan, "NVIDIA L4")
    assert file == cache_file(tmp_path, plan, "NVIDIA L4")
    assert file.is_relative_to(tmp_path)
    os.utime(other, ns=(0, plan.stat().st_mtime_ns))
    assert len({file, cache_file(tmp_path, other, "NVIDIA L4"), cache_file(tmp_path, plan, "NVIDIA H200")}) == 3
    os.utime(plan, ns=(0, 1))
    assert cache_file(tmp_path, plan, "NVIDIA L4") != file  # built again at the same place


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "tensorrt-rtx" / "a.kernels"
    write_cache(b"first", file)
    write_cache(b"second", file)
    assert file.read_bytes() == b"second"
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorrt-rtx").write_text("a file in the folder's place")
    write_cache(b"kernels", tmp_path / "tensorrt-rtx" / "a.kernels")
    assert "compiled kernels are not kept" in caplog.text
