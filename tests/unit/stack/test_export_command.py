"""``resrank export``: contradictory wishes are one sentence and exit code 2, before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from resrank.export.manifest import read_manifest
from resrank.stack.cli.app import run
from support.tiny_checkpoint import make_tiny_checkpoint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--runtime", "tensorrt", "--cpu-engine", "openvino"], "cpu_engine: has no meaning for runtime tensorrt"),
        (["--runtime", "torch", "--threads", "2"], "threads: has no meaning for runtime torch"),
        (["--gpus", "0,1"], "gpus: has no meaning for runtime cpu"),
        (["--runtime", "tensorrt", "--gpus", "first"], "gpus: 'first' is no list of numbers, as in 80,89"),
        (["--runtime", "tensorrt", "--compute-capability", "8"], "compute_capability: too small a number (limit 50"),
        (
            ["--runtime", "tensorrt", "--compute-capability", "8.9.1"],
            "compute_capability: '8.9.1' is none, as in 89 or",
        ),
        (
            ["--runtime", "tensorrt", "--encoder-profile", "9:8:64x8:128:512"],
            "encoder_profile: encoder profile '9:8:64x8:128:512': batch: min 9, opt 8, max 64 is no range",
        ),
        (["--runtime", "tensorrt", "--reranker-profile", "1:2:3"], "reranker_profile: reranker profile '1:2:3': write"),
    ],
)
def test_contradictions(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *arguments]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"Error: {said}")
    assert told.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--runtime", "gpu"], ["--precision", "int4"], ["--instances", "0"]])
def test_values_that_there_are_not(arguments: list[str], tmp_path: Path) -> None:
    assert run(["export", str(tmp_path), "--out", str(tmp_path / "out"), *arguments]) == 2


def test_the_help_shows_every_runtime_as_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")  # nothing is broken over two lines
    assert run(["export", "--help"]) == 0
    told = capsys.readouterr().out
    for words in ("cpu|tensorrt|tensorrt-rtx|torch", "Runtime cpu", "1:16:64x8:256:512", "x1:50:128"):
        assert words in told


def test_a_wrong_option_imports_no_torch() -> None:
    program = (
        "import sys; from resrank.stack.cli.app import run\n"
        "code = run(['export', 'x', '--runtime', 'tensorrt', '--threads', '2'])\n"
        "sys.exit('imported torch' if 'torch' in sys.modules else 0 if code == 2 else f'code {code}')"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_torch_repositories_are_exported_and_told_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_checkpoint(tmp_path / "tiny")
    out = tmp_path / "out"
    wishes = ["--runtime", "torch", "--precision", "fp32", "--output", "json"]
    assert run(["export", str(tmp_path / "tiny"), "--out", str(out), *wishes]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["manifest"] == read_manifest(out).model_dump(mode="json")
    assert told["engines_left_to_build"] is None
    assert {(tried["model"], tried["engine"], tried["chosen"]) for tried in told["tried"]} == {
        ("encoder", "torch", True),
        ("reranker", "torch", True),
    }
    for model in ("encoder", "reranker"):
        linked = out / model / "1" / "checkpoint"
        for file in ("resrank.json", "projectors.safetensors", "encoder/model.safetensors", "reranker/config.json"):
            assert (linked / file).samefile(tmp_path / "tiny" / file)
