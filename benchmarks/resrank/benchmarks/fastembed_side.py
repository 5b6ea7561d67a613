"""``fastembed`` in a child process, from the environment of infinity-emb, whose ONNX graph it runs, too."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from resrank.benchmarks.infinity import environment_python
from resrank.benchmarks.measurement import BenchmarkError
from resrank.core.scoring import Float32

_BATCH_SIZE = 64
_TIMEOUT_S = 60.0

_PROGRAM = """
import base64, json, sys
import numpy as np
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

folder, graph, dimension, pooling, threads, batch_size, max_tokens = sys.argv[1:]
TextEmbedding.add_custom_model(
    model="encoder", pooling=PoolingType[pooling], normalization=True, sources=ModelSource(url="unused"),
    dim=int(dimension), model_file=graph,
)
model = TextEmbedding("encoder", specific_model_path=folder, threads=int(threads), providers=["CPUExecutionProvider"])
# The tokenizer's own limit is half of what the encoder reads here.
model.model.tokenizer.enable_truncation(int(max_tokens))
print("ready", flush=True)
for line in sys.stdin:
    vectors = np.stack(list(model.embed(json.loads(line), batch_size=int(batch_size)))).astype("<f4")
    print(base64.b64encode(vectors.tobytes()).decode(), flush=True)
"""


class FastEmbed(AbstractContextManager["FastEmbed"]):
    """Encodes texts with fastembed's ``TextEmbedding``.

    Args:
        environments: Folder in which ``scripts/setup-infinity`` made ``infinity``.
        model: Folder with the ONNX graph and the tokenizer, as
            :func:`resrank.benchmarks.infinity.export_for_optimum` writes it.
        dimension: d.
        pooling: ``mean`` or ``cls``.
        threads: Of ONNX Runtime.
        max_tokens: Of a text, what is behind them is cut off.

    Raises:
        BenchmarkError: The environment does not exist, the graph is missing, or fastembed knows no such pooling.
    """

    def __init__(
        self, environments: Path, model: Path, *, dimension: int, pooling: str, threads: int, max_tokens: int
    ) -> None:
        graphs = sorted(model.glob("*.onnx"))
        if len(graphs) != 1 or pooling not in ("mean", "cls"):
            raise BenchmarkError(f"fastembed needs one ONNX graph in {model} and pooling mean or cls, not {pooling}")
        arguments = (model, graphs[0].name, dimension, pooling.upper(), threads, _BATCH_SIZE, max_tokens)
        self._command = [str(environment_python(environments)), "-c", _PROGRAM, *map(str, arguments)]
        self._dimension = dimension

    def __enter__(self) -> Self:
        """Starts the child and waits for its model.

        Raises:
            BenchmarkError: It ended before.
        """
        self._told = tempfile.TemporaryFile()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self._child = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._told,
            env=environment,
            text=True,
        )
        try:
            self._line()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def embed(self, texts: Sequence[str]) -> Float32:
        """FP32 [n, d] of texts.

        Raises:
            BenchmarkError: The child has ended.
        """
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(list(texts)) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # its last words are read below
        return np.frombuffer(base64.b64decode(self._line()), "<f4").reshape(len(texts), self._dimension)

    def _line(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._child.wait(_TIMEOUT_S)
            self._told.seek(0)
            words = self._told.read().decode(errors="replace").strip().splitlines()
            raise BenchmarkError(f"fastembed ended: {(words or ['?'])[-1]}")
        return line

    def _close(self) -> None:
        self._child.kill()
        self._child.communicate()
        self._told.close()
