"""What is flushed is each file and each folder, the outermost last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resrank.core.durability import flush, flush_tree


def test_a_tree_is_flushed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "encoder").mkdir(parents=True)
    (tmp_path / "out" / "resrank.json").write_text("{}")
    (tmp_path / "out" / "encoder" / "model.safetensors").write_bytes(b"weights")
    flushed: list[tuple[int, int]] = []

    def fsync(handle: int) -> None:
        found = os.fstat(handle)
        flushed.append((found.st_dev, found.st_ino))

    monkeypatch.setattr(os, "fsync", fsync)

    def identity(path: Path) -> tuple[int, int]:
        return path.stat().st_dev, path.stat().st_ino

    flush_tree(tmp_path / "out")
    assert sorted(flushed) == sorted(map(identity, (*(tmp_path / "out").rglob("*"), tmp_path / "out")))
    assert flushed[-1] == identity(tmp_path / "out")
    flush(tmp_path)
    assert flushed[-1] == identity(tmp_path)
