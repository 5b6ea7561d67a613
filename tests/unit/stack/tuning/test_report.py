"""What `resrank serve` says about tuning."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from resrank.core.names import Model
from resrank.stack.serve import tuned_settings, tuning_table
from resrank.stack.tuning.choice import Choice, Sample, Setting
from resrank.stack.tuning.settings import ModelSettings, write_settings
from support.tiny_manifest import write_tiny_manifest

DEFAULT, SPLIT, SINGLE = Setting(1, 2, 8), Setting(2, 1, 8), Setting(1, 2, 1)


def printed(*parts: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(*parts)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_shows_what_was_measured_and_why_it_was_taken() -> None:
    samples = {DEFAULT: Sample(10.0, 95.5), SINGLE: Sample(9.5, 95.5), SPLIT: Sample(12.25, 101.0)}
    choice = Choice(SPLIT, DEFAULT, 12.0, samples, SPLIT, (1.21, 1.19, 1.2, 1.22))
    lines = printed(tuning_table({Model.RERANKER: choice})).splitlines()
    (default,) = (line for line in lines if "10.00" in line)
    (split,) = (line for line in lines if "12.25" in line)
    (single,) = (line for line in lines if "9.50" in line)
    assert "default" in default
    assert "95.5" in default
    assert "final against the default: x 1.21 1.19 1.20 1.22, chosen" in split
    assert "chosen" not in default + single


def test_serve_says_that_it_applies_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_tiny_manifest(tmp_path / "repository")
    console = Console(file=io.StringIO(), width=200)
    assert tuned_settings(tmp_path / "repository", console, tune=False) is None
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    found = ModelSettings(engines=2, threads=1, rows=4, row_ms=80.0)
    written, _ = write_settings(tmp_path / "repository", {Model.RERANKER: found})
    assert tuned_settings(tmp_path / "repository", console, tune=False) == written
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said == "tuned for this machine: reranker 2 x 1 threads, 4 rows in a call\n"
