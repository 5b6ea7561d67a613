"""What `make` serves and measures is of the checkpoint that was asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resrank.core.adapter import validate_adapter
from resrank.core.checkpoint import read_spec
from resrank.export.manifest import CheckpointFacts, write_manifest
from support.tiny_checkpoint import make_tiny_checkpoint
from support.tiny_manifest import ENCODER_SHA256, make_manifest

ROOT = Path(__file__).parents[3]
OLD, NEW = 1_000_000_000, 2_000_000_000

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) / "checkpoint" for name in ("one", "other")}
    for seed, folder in enumerate(folders.values()):
        make_tiny_checkpoint(folder, seed=seed)
    return folders


@pytest.fixture
def checkout(tmp_path: Path, checkpoints: dict[str, Path]) -> Path:
    """A checkout whose environment is ready, with a ``resrank`` that says what it is told, and a new repository."""
    for name in ("pyproject.toml", "constraints.txt", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("scripts", "checkpoints", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in {"resrank": 'echo resrank "$@"', "python": f'exec {sys.executable} "$@"'}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    ready = [tmp_path / ".venv" / ".ready", tmp_path / "var" / "infinity" / ".ready"]
    repository = tmp_path / "var" / "repository"
    for file in (*ready, repository / "manifest.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    digest = read_spec(checkpoints["one"]).digest()
    facts = CheckpointFacts(name="one", sha256=digest, encoder_sha256=ENCODER_SHA256)
    write_manifest(make_manifest(checkpoint=facts), repository)
    for file in (*ready, repository / "manifest.json"):
        os.utime(file, (NEW, NEW))
    return tmp_path


def make(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, env=environment)


def test_a_newer_repository_of_another_checkpoint_is_refused(checkout: Path, checkpoints: dict[str, Path]) -> None:
    done = make(checkout, "serve", f"CHECKPOINT={checkpoints['one']}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("resrank serve var/repository ")
    for target in ("serve", "bench", "acceptance"):
        done = make(checkout, target, f"CHECKPOINT={checkpoints['other']}")
        assert done.returncode != 0
        assert done.stdout == ""
        assert "var/repository was exported from another checkpoint than" in done.stderr


def test_an_adapter_is_known_by_its_name_since_its_bases_are_not_at_hand(checkout: Path) -> None:
    adapter = "CHECKPOINT=checkpoints/default"
    assert "was exported from another checkpoint" in make(checkout, "serve", adapter).stderr
    facts = CheckpointFacts(name=validate_adapter(ROOT / "checkpoints" / "default").name, sha256="0" * 64,
                            encoder_sha256=ENCODER_SHA256)  # fmt: skip
    write_manifest(make_manifest(checkpoint=facts), checkout / "var" / "repository")
    os.utime(checkout / "var" / "repository" / "manifest.json", (NEW, NEW))
    done = make(checkout, "serve", adapter)
    assert done.stdout.startswith("resrank serve var/repository "), done.stderr


def test_an_older_repository_is_exported_anew(checkout: Path, checkpoints: dict[str, Path]) -> None:
    os.utime(checkout / "var" / "repository" / "manifest.json", (OLD, OLD))
    done = make(checkout, "serve", f"CHECKPOINT={checkpoints['one']}")
    assert f"resrank export {checkpoints['one']} --out var/repository --force" in done.stdout


def test_what_is_measured_is_what_was_asked_for(checkout: Path, checkpoints: dict[str, Path]) -> None:
    (checkout / "var" / "repository").rename(checkout / "var" / "mine")
    done = make(checkout, "bench", f"CHECKPOINT={checkpoints['one']}", "REPOSITORY=var/mine", "ARGS=rerank")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"resrank bench --repository var/mine --checkpoint {checkpoints['one']} rerank\n"
