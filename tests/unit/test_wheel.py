"""What is in the wheel, built as an installer builds it: everything that serves, little weight, no benchmarks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = [name for name in PROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"] if name != "benchmarks"]
MOST_WEIGHTS = 4_000_000
"""Bytes of checkpoints, tokenizers and all."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, which is all that installing a pure one does."""
    folder = tmp_path_factory.mktemp("installed")
    wheel.extractall(folder)
    return folder


def resrank(installed: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``resrank`` of the wheel, with the packages of this environment and without this clone."""
    path = [str(installed), *(entry for entry in sys.path if entry and not Path(entry).is_relative_to(ROOT))]
    path += [entry for entry in sys.path if "site-packages" in entry]
    program = f"import sys; sys.path[:] = {path!r}; from resrank.stack.__main__ import main; main()"
    return subprocess.run(
        [sys.executable, "-S", "-c", program, *arguments],
        cwd=installed,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_room_but_the_benchmarks_is_in_it(wheel: zipfile.ZipFile) -> None:
    rooms = {name.split("/")[1] for name in wheel.namelist() if name.startswith("resrank/")}
    assert rooms == set(ROOMS)
    assert "resrank/export/model_repository/rerank/config.pbtxt" in wheel.namelist()


def test_it_carries_the_default_checkpoint_and_little_weight(wheel: zipfile.ZipFile) -> None:
    sizes = {info.filename: info.file_size for info in wheel.infolist()}
    assert "resrank/export/checkpoints/default/resrank.json" in sizes
    assert sum(size for name, size in sizes.items() if "/checkpoints/" in name) <= MOST_WEIGHTS
    assert all(size <= 100_000 for name, size in sizes.items() if "/checkpoints/" not in name)


def test_the_command_says_where_the_benchmarks_are(installed: Path) -> None:
    done = resrank(installed, "bench", "rerank", "--full")
    assert done.returncode == 1
    assert done.stderr == (
        "Error: the benchmarks are not part of the installed package: clone the repository and call `resrank bench` "
        "there\n"
    )


def test_the_command_says_where_a_checkpoint_is_that_the_package_lacks(installed: Path, tmp_path: Path) -> None:
    shutil.rmtree(installed / "resrank" / "export" / "checkpoints")
    done = resrank(installed, "checkpoint", "merge", "--default", "--out", "merged", RESRANK_CACHE=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith(
        "Error: checkpoint 'default' is not part of the installed package: copy checkpoints/default of ResRank's "
        f"source repository to {tmp_path}/adapters/default-"
    )
    assert done.stderr.count("\n") == 1
