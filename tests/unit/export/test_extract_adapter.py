"""``scripts/extract_adapter.py`` over tiny checkpoints: what it writes, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from resrank.core.checkpoint import folder_sha256, read_spec, validate_folder, write_spec
from resrank.core.errors import CheckpointError
from resrank.export.adapters import merge_adapter
from resrank.stack.cli.app import run
from support.python_files import SCRIPTS, load_python_file
from support.tiny_adapter import make_tiny_adapter
from support.tiny_checkpoint import make_bert, make_llama, make_tiny_checkpoint


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_python_file(SCRIPTS / "extract_adapter.py")


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint with a score residual alone, whose bases are found by name."""
    monkeypatch.chdir(tmp_path)
    make_bert(tmp_path / "bert", 32)
    make_llama(tmp_path / "llama", 48)
    options = ["--slots", "relations", "--neighbors", "3", "--score-residual", "0.3"]
    assert run(["checkpoint", "init", "--encoder", "bert", "--reranker", "llama", *options, "--out", "start"]) == 0
    return tmp_path / "start"


def changed(start: Path, out: Path, *roles: str) -> Path:
    """A checkpoint as a run leaves it that trained these in full."""
    shutil.copytree(start, out)
    spec = read_spec(start)
    for role in roles:
        file = out / role / "model.safetensors"
        held = {name: value + 0.01 if value.dim() == 2 else value for name, value in load_file(file).items()}
        if role == "reranker":
            held["embed_tokens.weight"] = load_file(file)["embed_tokens.weight"]
        save_file(held, file, metadata={"format": "pt"})
        part = getattr(spec, role).model_copy(update={"sha256": folder_sha256(out / role)})
        spec = spec.model_copy(update={role: part})
    write_spec(spec, out)
    (out / "README.md").write_text("# trained\n")
    return validate_folder(out) and out


def test_what_it_writes_merges_to_what_was_trained(script: ModuleType, start: Path, tmp_path: Path) -> None:
    trained = changed(start, tmp_path / "trained", "reranker")
    kept = script.extract(trained, start, None, 64, tmp_path / "adapter")  # above every layer's smaller side
    assert kept == pytest.approx(1)
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert merged.encoder.sha256 == read_spec(start).encoder.sha256
    expected, found = (
        load_file(folder / "reranker" / "model.safetensors") for folder in (trained, tmp_path / "merged")
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=0)


def test_an_encoder_that_was_trained_too_is_refused(script: ModuleType, start: Path, tmp_path: Path) -> None:
    trained = changed(start, tmp_path / "trained", "encoder", "reranker")
    with pytest.raises(CheckpointError, match="its encoder was trained too"):
        script.extract(trained, start, None, 8, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_the_encoder_of_another_checkpoint_is_refused(script: ModuleType, start: Path, tmp_path: Path) -> None:
    trained = changed(start, tmp_path / "trained", "reranker")
    make_tiny_checkpoint(tmp_path / "other")
    make_tiny_adapter(tmp_path / "foreign", tmp_path / "other", sources=("other/encoder", "other/reranker"))
    with pytest.raises(CheckpointError, match=r"foreign: its encoder, merged, has the sha256 .*, but that of .*start"):
        script.extract(trained, start, tmp_path / "foreign", 8, tmp_path / "adapter")
