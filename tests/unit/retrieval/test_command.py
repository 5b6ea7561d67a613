"""``python -m resrank.retrieval`` where something is missing, and while it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resrank.core.extras import install_command

RUN = "import runpy; runpy.run_module('resrank.retrieval', run_name='__main__', alter_sys=True)"


@pytest.mark.parametrize("package", ["typer", "grpc_health", "grpc_reflection", "faiss"])
def test_without_the_extra_it_is_named(tmp_path: Path, package: str) -> None:
    program = f"import sys; sys.argv = ['x', '--index', {str(tmp_path)!r}]; sys.modules[{package!r}] = None; {RUN}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr == (f"resrank.retrieval: needs the Python package {package}: {install_command('retrieval')}\n")


def test_an_interrupt_while_something_is_imported_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)")
    ended = subprocess.run(
        [sys.executable, "-m", "resrank.retrieval", "--index", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (-2, "")


def test_output_onto_a_full_device_is_one_sentence(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "resrank.retrieval",
        "--index",
        str(tmp_path),
        "--port",
        "0",
        "--log-level",
        "error",
    ]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "resrank.retrieval: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--dense-index", "IDMap,Flat"], "dense_index: FAISS cannot add vectors to 'IDMap,Flat' batch by batch"),
        (
            ["--dense-index", "HNSW8", "--dense-search-parameters", "nprobe=16"],
            "dense_search_parameters: FAISS refuses 'nprobe=16' for 'HNSW8'",
        ),
    ],
)
def test_a_dense_index_that_cannot_serve_is_one_sentence(options: list[str], sentence: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "resrank.retrieval", "--index", str(tmp_path / "index"), "--port", "0", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"resrank.retrieval: {sentence}")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "index").exists()
