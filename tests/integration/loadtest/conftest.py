"""A real Triton and a real sidecar with an index, small enough that load is cheap."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from resrank.export.export_options import ExportOptions
from resrank.export.exporter import export_checkpoint
from resrank.serving.engines import EngineKind, Precision
from resrank.stack.local_stack import LocalStack
from support.tiny_checkpoint import make_tiny_checkpoint

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "examples" / "hotpotqa-mini"
RESRANK = [sys.executable, "-m", "resrank.stack"]
PASSAGES = 60
QUEUE = 16


@dataclass(frozen=True)
class Stack:
    """What is served, and the data that is in its index."""

    local: LocalStack
    data: Path

    def ports(self, **others: int) -> list[str]:
        """Options that name this stack's servers, or others in their place."""
        triton, sidecar = self.local.triton, self.local.sidecar
        named = {"triton": triton.grpc_port, "metrics": triton.metrics_port, "retrieval": sidecar.port, **others}
        return [word for name, port in named.items() for word in (f"--{name}-port", str(port))]

    def scenario(self, folder: Path, text: str) -> Path:
        """Writes a scenario on this stack's data."""
        path = folder / "scenario.yaml"
        data = {"queries": str(SAMPLE / "queries.jsonl.gz"), "passages": str(self.data)}
        path.write_text(f"{text}\ndata: {json.dumps(data)}\n")
        return path

    def start(self, *arguments: object, **ports: int) -> subprocess.Popen[str]:
        """Starts ``resrank loadtest`` against this stack."""
        command = [*RESRANK, "loadtest", *map(str, arguments), *self.ports(**ports)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("loadtest")
    make_tiny_checkpoint(
        folder / "checkpoint", query_residual=True, max_query_tokens=256, max_passage_tokens=512, max_passages=100
    )
    options = ExportOptions(cpu_engine=EngineKind.OPENVINO, precision=Precision.FP32, threads=1)
    export_checkpoint(folder / "checkpoint", folder / "repository", options)
    for model in ("encoder", "reranker"):
        path = folder / "repository" / model / "config.pbtxt"
        config = text_format.Parse(path.read_text(), ModelConfig())
        config.parameters["max_queue_size"].string_value = str(QUEUE)
        path.write_text(text_format.MessageToString(config))
    with gzip.open(SAMPLE / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        (folder / "corpus.jsonl").write_text("".join(line for line, _ in zip(file, range(PASSAGES), strict=False)))
    with LocalStack(folder / "repository", folder / "index") as local:
        build = [*RESRANK, "index", "build", folder / "corpus.jsonl", "--index", folder / "index"]
        subprocess.run([*map(str, build), "--triton-url", local.triton.grpc_address], check=True, capture_output=True)
        yield Stack(local, folder / "corpus.jsonl")


Finish = Callable[[subprocess.Popen[str]], tuple[int, str, str]]


@pytest.fixture
def finish() -> Finish:
    """``finish(process)`` waits for its end and returns exit code, output and errors."""

    def wait(process: subprocess.Popen[str]) -> tuple[int, str, str]:
        try:
            out, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        return process.returncode, out, errors

    return wait
