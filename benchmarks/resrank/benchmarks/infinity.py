"""``infinity-emb``'s server, from an environment of its own: it wants older packages than this distribution."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resrank.benchmarks.measurement import BenchmarkError
from resrank.core.scoring import Float32
from resrank.stack.ports import choose_ports
from resrank.stack.process import ManagedProcess

_HOST = "127.0.0.1"
_FOLDER = "infinity"
_TIMEOUT_S = 300.0
_BATCH_SIZE = 64

_EXPORT = """
import sys
from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTOptimizer
from optimum.onnxruntime.configuration import OptimizationConfig
from transformers import AutoTokenizer

source, out = sys.argv[1:]
model = ORTModelForFeatureExtraction.from_pretrained(source, export=True)
config = OptimizationConfig(optimization_level=99)
ORTOptimizer.from_pretrained(model).optimize(optimization_config=config, save_dir=out)
AutoTokenizer.from_pretrained(source).save_pretrained(out)
"""


_VERSIONS = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"


class InfinityServer(ManagedProcess):
    """Serves models on a loopback port until stopped.

    Args:
        environments: Folder in which ``scripts/setup-infinity`` made ``infinity``.
        models: Name to folder of what is served, in Hugging Face's or sentence-transformers' layout.
        threads: Of torch or of ONNX Runtime.
        engine: ``torch``, or ``optimum`` for ONNX Runtime.
        pooling: Of the ``optimum`` engine, ``mean`` or ``cls``; torch reads it from the folder.

    Raises:
        BenchmarkError: The environment does not exist.
    """

    def __init__(
        self,
        environments: Path,
        models: Mapping[str, Path],
        *,
        threads: int,
        engine: str = "torch",
        pooling: str = "mean",
    ) -> None:
        program = _environment(environments) / "bin" / "infinity_emb"
        (self.port,) = choose_ports(_HOST, None)
        named = [
            part
            for name, folder in models.items()
            for part in ("--model-id", os.fspath(folder.absolute()), "--served-model-name", name)
        ]
        super().__init__(
            "infinity-emb",
            [
                *(str(program), "v2", *named, "--engine", engine, "--device", "cpu", "--batch-size", str(_BATCH_SIZE)),
                *("--pooling-method", pooling),
                # BetterTransformer is gone from transformers: attention is fused without it. Warming up is done here.
                *("--no-bettertransformer", "--no-model-warmup", "--log-level", "warning"),
                *("--host", _HOST, "--port", str(self.port)),
            ],
            environment={
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                "HF_HUB_OFFLINE": "1",
                "DO_NOT_TRACK": "1",
                "INFINITY_ANONYMOUS_USAGE_STATS": "0",
            },
            ready_timeout_s=_TIMEOUT_S,
        )

    def is_ready(self) -> bool:
        """Whether it answers; it listens once its models are loaded."""
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=2.0)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except OSError:  # not listening yet
            return False
        finally:
            connection.close()


class InfinityClient:
    """Asks such a server.

    Each request has a connection of its own: the server closes one that has rested for 5 s, and on loopback a new one
    costs nothing that shows beside the work.
    """

    def __init__(self, server: InfinityServer) -> None:
        """Connects at the first request."""
        self._port = server.port

    def rerank(self, model: str, query: str, passages: Sequence[str]) -> Float32:
        """FP32 [N] scores of passages, in their order.

        Raises:
            BenchmarkError: The server refused.
        """
        answer = self._post("/rerank", {"model": model, "query": query, "documents": passages, "raw_scores": True})
        scores = np.empty(len(passages), np.float32)
        for result in answer["results"]:
            scores[result["index"]] = result["relevance_score"]
        return scores

    def embed(self, model: str, texts: Sequence[str]) -> Float32:
        """FP32 [n, d] of texts; as base64, which is the quickest way that it answers.

        Raises:
            BenchmarkError: The server refused.
        """
        answer = self._post("/embeddings", {"model": model, "input": texts, "encoding_format": "base64"})
        rows = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in answer["data"]]
        return np.stack(rows)

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=_TIMEOUT_S)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise BenchmarkError(f"infinity-emb answered {path} with {response.status}: {content[:300].decode()}")
        return json.loads(content)


def environment_python(environments: Path) -> Path:
    """The environment's interpreter.

    Raises:
        BenchmarkError: The environment does not exist.
    """
    return _environment(environments) / "bin" / "python"


def infinity_version(environments: Path) -> str:
    """The version in the environment, with those of torch and transformers beside it.

    Raises:
        BenchmarkError: The environment does not exist, or is broken.
    """
    wanted = ("infinity-emb", "torch", "transformers", "onnxruntime")
    return _python(environments, _VERSIONS, *wanted)


def fastembed_version(environments: Path) -> str:
    """The version in the environment.

    Raises:
        BenchmarkError: The environment does not exist, or is of a time without it.
    """
    return _python(environments, _VERSIONS, "fastembed")


def export_for_optimum(environments: Path, model: Path, out: Path) -> None:
    """Makes the ONNX graph that the ``optimum`` engine wants, by optimum itself, optimised as the server would do it.

    The server's own optimisation fails for models in a folder: it hands optimum a path where that wants a name.

    Raises:
        BenchmarkError: The environment does not exist, or the export failed.
    """
    _python(
        environments,
        _EXPORT,
        model,
        out,
    )


def _python(environments: Path, program: str, *arguments: Path | str) -> str:
    command = [str(environment_python(environments)), "-c", program, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    if ended.returncode:
        raise BenchmarkError(f"infinity-emb's environment failed: {(ended.stderr.strip().splitlines() or ['?'])[-1]}")
    return " ".join(ended.stdout.split())


def _environment(environments: Path) -> Path:
    environment = environments / _FOLDER
    if not (environment / "bin" / "infinity_emb").is_file():
        raise BenchmarkError(f"{environment} has no infinity-emb: make it with scripts/setup-infinity {environments}")
    return environment
