from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RUNTIMES = {"onnxruntime", "openvino"}
TRACES = ("*telemetry*", "*deviceid*", "*openvino_ga*", "*.ses", "Microsoft", "intel")

EXPORT_AND_RUN = """
import sys
from pathlib import Path

from resrank.export.export_options import ExportOptions
from resrank.export.exporter import export_checkpoint
from resrank.serving.engines import Precision
from resrank.stack.gpu import cpu_has_bf16
from support.tiny_checkpoint import make_tiny_checkpoint

folder = Path(sys.argv[1])
make_tiny_checkpoint(folder / "checkpoint")
report = export_checkpoint(
    folder / "checkpoint", folder / "repository", ExportOptions(precision=Precision.FP32, threads=1)
)
assert {choice.by for choice in report.tried} == {"onnxruntime", "openvino"}
cpu_has_bf16()
import openvino.tools.ovc
"""


@pytest.mark.parametrize("program", [EXPORT_AND_RUN])
def test_no_runtime_leaves_a_trace_in_a_fresh_home(tmp_path: Path, program: str) -> None:
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    forgotten = {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI"}  # in CI both runtimes keep quiet by themselves
    environment = {name: value for name, value in os.environ.items() if name not in forgotten}
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**environment, "HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT / "tests")},
        check=True,
        timeout=600,
    )
    assert [path for folder in (home, temporary) for trace in TRACES for path in folder.rglob(trace)] == []


def imported_runtimes(function: ast.AST) -> list[ast.stmt]:
    return [
        node
        for node in ast.walk(function)
        if (isinstance(node, ast.Import) and any(alias.name.partition(".")[0] in RUNTIMES for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in RUNTIMES)
    ]


def test_telemetry_is_off_before_a_runtime_is_imported() -> None:
    files = [path for path in ROOT.glob("*/resrank/**/*.py") if imported_runtimes(ast.parse(path.read_text()))]
    assert len(files) >= 4
    for path in files:
        tree = ast.parse(path.read_text())
        calls = [
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "no_telemetry"
        ]
        first = min(node.lineno for node in imported_runtimes(tree))
        assert calls, path
        assert min(calls) < first, path
        assert not any(node in tree.body for node in imported_runtimes(tree)), f"{path}: imported with the module"
