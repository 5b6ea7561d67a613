"""``resrank`` with adapter checkpoints as a user meets it: merge, show, export, demo."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from resrank.core.checkpoint import read_spec, validate_folder
from resrank.export import adapters, shipped_checkpoints
from resrank.stack.cli.app import run
from resrank.stack.demo import DemoSettings, Screen, choose_checkpoint
from support.tiny_adapter import cached_backbones, make_tiny_adapter
from support.tiny_checkpoint import make_tiny_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    make_tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "adapter"
    make_tiny_adapter(folder, base, train_encoder=False)
    return folder


@pytest.fixture
def shipped(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny adapter checkpoint in the place of the default, with its bases in the cache."""
    monkeypatch.setenv("RESRANK_CACHE", str(tmp_path / "cache"))
    encoder, reranker = cached_backbones(base, tmp_path / "cache")
    monkeypatch.setattr(adapters, "PACKAGED_BACKBONES", (encoder, reranker))
    monkeypatch.setattr(shipped_checkpoints, "_built_in", lambda name: [tmp_path / "default"])
    make_tiny_adapter(tmp_path / "default", base, sources=(encoder.source, reranker.source), name="shipped")
    return tmp_path / "default"


def test_merge_makes_a_full_checkpoint(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bases = ["--encoder", str(base / "encoder"), "--reranker", str(base / "reranker")]
    assert run(["checkpoint", "merge", str(adapter), "--out", str(tmp_path / "out"), *bases]) == 0

    spec = validate_folder(tmp_path / "out")
    printed = " ".join(capsys.readouterr().out.split())
    assert "checkpoint 'tiny-adapter', d = 32, h = 48, linear projector" in printed
    assert "dense-start" not in printed
    assert spec.fusion.residual_gate == 0.7


def test_merge_takes_the_default(shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["checkpoint", "merge", "--default", "--out", str(tmp_path / "out")]) == 0
    assert validate_folder(tmp_path / "out").name == "shipped"


@pytest.mark.parametrize("arguments", [[], ["adapter", "--default"]])
def test_merge_wants_an_adapter_or_the_default(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["checkpoint", "merge", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert "give either an adapter checkpoint or --default" in capsys.readouterr().err


def test_errors_are_one_sentence(base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    for arguments, problem in (
        ([str(base)], "a full checkpoint, not an adapter checkpoint: there is nothing to merge"),
        ([str(tmp_path / "missing")], "no such file; a checkpoint folder holds resrank.json"),
        ([str(adapter)], "the encoder's base is not at hand"),
        (
            [str(adapter), "--encoder", str(base / "reranker"), "--reranker", str(base / "reranker")],
            "give the folder of",
        ),
    ):
        assert run(["checkpoint", "merge", *arguments, *out]) == 1
        error = capsys.readouterr().err
        assert problem in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_show_describes_an_adapter_checkpoint(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["checkpoint", "show", str(adapter), "--output", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    stored = json.loads((adapter / "resrank.json").read_text())
    assert shown.pop("trained") == {"encoder": "no", "reranker": "LoRA of rank 4 in 14 layers"}
    assert len(shown.pop("sha256")) == 64
    assert shown == stored

    assert run(["checkpoint", "show", str(adapter)]) == 0
    assert "LoRA of rank 4 in 14 layers" in capsys.readouterr().out


@pytest.mark.usefixtures("shared_traces")
def test_export_merges_first(shipped: Path, tmp_path: Path) -> None:
    """The manifest names the merged checkpoint, and nothing of the merge is left beside the repository."""
    folder = tmp_path / "exported"
    engine = ["--cpu-engine", "onnxruntime", "--precision", "fp32"]
    assert run(["export", str(shipped), "--out", str(folder / "repository"), *engine]) == 0

    expected = read_spec(adapters.default_checkpoint())
    served = read_spec(folder / "repository" / "rerank_prompt" / "1" / "resrank.json")
    assert served == expected
    assert list(folder.iterdir()) == [folder / "repository"]


def test_the_demo_takes_the_trained_default_and_says_nothing_of_untrained(shipped: Path, tmp_path: Path) -> None:
    printed = io.StringIO()
    screen = Screen(Console(file=printed, width=200))
    settings = DemoSettings(tmp_path / "work", None, tmp_path, questions=1)
    folder, spec = choose_checkpoint(settings, screen)

    assert folder == adapters.default_checkpoint()
    assert (spec.name, spec) == ("shipped", read_spec(folder))
    assert f"using {folder}" in printed.getvalue()
    assert "untrained" not in printed.getvalue()
    assert not (tmp_path / "work").exists()


def test_the_demo_takes_an_adapter_checkpoint_of_the_user_s(adapter: Path, tmp_path: Path) -> None:
    screen = Screen(Console(file=io.StringIO()))
    folder, spec = choose_checkpoint(DemoSettings(tmp_path / "work", adapter, tmp_path, questions=1), screen)
    assert (folder, spec.name) == (adapter, "tiny-adapter")
