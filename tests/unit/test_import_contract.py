"""Who may import whom (``[tool.importlinter]`` in pyproject.toml): kept as it stands, and broken by what is planted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["dev-mode-dirs"]
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache', '--no-logo'])"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages, to plant imports in."""
    copy = tmp_path_factory.mktemp("tree")
    for room in ROOMS:
        shutil.copytree(ROOT / room / "resrank", copy / room / "resrank", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", copy / "pyproject.toml")
    return copy


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(tree / room) for room in ROOMS)}
    return subprocess.run(
        [sys.executable, "-c", LINT], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )


def test_every_room_is_under_the_contract(tree: Path) -> None:
    contract = tomllib.loads((tree / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert contract["root_packages"] == [f"resrank.{room}" for room in ROOMS]
    assert (done := lint(tree)).returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("core/resrank/core/limits.py", "import torch"),
        ("core/resrank/core/limits.py", "from resrank.model.quiet import quiet_transformers"),
        ("evaluation/resrank/evaluation/names.py", "from resrank.stack.index_sidecar import sidecar_of"),
        ("evaluation/resrank/evaluation/names.py", "from resrank.export.adapters import merge_adapter"),
        ("stack/resrank/stack/ports.py", "from resrank.benchmarks.names import Benchmark"),
    ],
)
def test_a_forbidden_import_breaks_it(tree: Path, module: str, planted: str) -> None:
    file = tree / module
    before = file.read_text()
    try:
        # Inside a function: an import that waits is an import.
        file.write_text(f"{before}\n\ndef planted():\n    {planted}\n")
        done = lint(tree)
    finally:
        file.write_text(before)
    assert done.returncode == 1, done.stdout
    imported = planted.split()[1]
    assert f"{module.split('/', 1)[1].removesuffix('.py').replace('/', '.')} -> {imported}" in done.stdout
