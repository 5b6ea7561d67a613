"""Exported checkpoints behind a real Triton, and the torch reference that their answers are compared with."""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton_grpc
from google.protobuf import text_format
from transformers import AutoTokenizer
from tritonclient.grpc.model_config_pb2 import ModelConfig

from resrank.core.checkpoint import ENCODER_DIR, RERANKER_DIR, CheckpointSpec
from resrank.core.names import Parameter
from resrank.export.export_options import ExportOptions
from resrank.export.exporter import export_checkpoint
from resrank.loadtest.server_metrics import ModelCounters, parse_metrics
from resrank.model.modeling import ResRankModel
from resrank.serving.engines import EngineKind, Precision
from resrank.serving.load_metrics import PUBLISH_EVERY_S
from resrank.stack.triton_process import TritonProcess
from support.tiny_checkpoint import make_tiny_checkpoint

# The kinds of ensemble, both forms of projector, both engines, both kinds of encoder; g is 1 everywhere.
CHECKPOINTS: dict[str, tuple[dict[str, Any], EngineKind]] = {
    "query_residual-linear-openvino": (
        {"query_residual": True, "embedding_dim": 32, "hidden_size": 48},
        EngineKind.OPENVINO,
    ),
    "plain-identity-onnxruntime": (
        {"embedding_dim": 48, "hidden_size": 48, "encoder_family": "llama", "pooling": "last", "append_eos": True},
        EngineKind.ONNXRUNTIME,
    ),
}


class Reference:
    """What the model computes, from the checkpoint with torch and transformers alone."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = ResRankModel.from_checkpoint(checkpoint)
        self.spec = self.model.spec
        self.encoder_tokenizer = AutoTokenizer.from_pretrained(checkpoint / ENCODER_DIR)
        self.reranker_tokenizer = AutoTokenizer.from_pretrained(checkpoint / RERANKER_DIR)

    def encode(self, text: str) -> np.ndarray:
        """FP32 [d] of one text, which needs no padding."""
        ids = self.encoder_tokenizer(text)["input_ids"]
        if self.spec.encoder.append_eos:
            ids = [*ids, self.encoder_tokenizer.eos_token_id]
        with torch.no_grad():
            return self.model.encode(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))[0].numpy()

    def ids(self, text: str, *, split_special_tokens: bool = False) -> list[int]:
        tokenizer = self.reranker_tokenizer
        return tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens)["input_ids"]

    def rerank(self, query: str, candidates: np.ndarray, query_ids: Sequence[int] | None = None) -> np.ndarray:
        """FP32 [N] scores of FP16 [N, d] candidates, the sequence written out by hand."""
        prompt = self.spec.reranker.prompt
        before = [
            *self.ids(prompt.before_query),
            *(self.ids(query) if query_ids is None else query_ids),
            *self.ids(prompt.before_passages),
        ]
        eos = self.reranker_tokenizer.convert_tokens_to_ids(self.spec.reranker.eos_token)
        row = [*before, *[0] * len(candidates), *self.ids(prompt.after_passages), eos]
        slots = [*range(len(before), len(before) + len(candidates))]
        passages = torch.from_numpy(candidates)[None]
        e_q = torch.from_numpy(self.encode(query))[None] if self.spec.fusion.query_residual else None
        with torch.no_grad():
            states, last = self.model.states(
                torch.tensor([row]), torch.tensor([slots]), torch.tensor([[len(row) - 1]]), passages
            )
            return self.model.score(states, last, passages, e_q)[0].numpy()


@dataclass(frozen=True)
class Exported:
    """A checkpoint, exported."""

    checkpoint: Path
    repository: Path
    reference: Reference

    @property
    def spec(self) -> CheckpointSpec:
        return self.reference.spec


@dataclass(frozen=True)
class Served(Exported):
    """A checkpoint behind Triton."""

    address: str
    client: Any
    metrics_address: str

    def metrics(self) -> str:
        """Triton's metrics page."""
        with urlopen(f"http://{self.metrics_address}/metrics", timeout=10.0) as answer:
            return str(answer.read().decode())

    def metric(self, series: str) -> float:
        """One figure of it."""
        (value,) = (line.rpartition(" ")[2] for line in self.metrics().splitlines() if line.startswith(f"{series} "))
        return float(value)

    def counters(self) -> dict[str, ModelCounters]:
        """What every model has done so far."""
        time.sleep(2 * PUBLISH_EVERY_S)
        return parse_metrics(self.metrics())


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """``exported(name)`` exports one of CHECKPOINTS, once."""

    @functools.cache
    def export(name: str) -> Exported:
        fields, engine = CHECKPOINTS[name]
        folder = tmp_path_factory.mktemp("serving")
        make_tiny_checkpoint(folder / "checkpoint", **fields)
        options = ExportOptions(cpu_engine=engine, precision=Precision.FP32, threads=1)
        export_checkpoint(folder / "checkpoint", folder / "repository", options)
        return Exported(folder / "checkpoint", folder / "repository", Reference(folder / "checkpoint"))

    return export


@pytest.fixture(scope="session", params=CHECKPOINTS)
def served(request: pytest.FixtureRequest, exported: Callable[[str], Exported]) -> Iterator[Served]:
    """Each of CHECKPOINTS in turn."""
    made = exported(request.param)
    with (
        TritonProcess(made.repository) as triton,
        triton_grpc.InferenceServerClient(triton.grpc_address) as client,
    ):
        yield Served(
            made.checkpoint, made.repository, made.reference, triton.grpc_address, client, triton.metrics_address
        )


@dataclass(frozen=True)
class Searching(Served):
    """Behind a Triton that knows a sidecar's socket, and whose embedding cache is the smallest there is.

    Its log tells of every warm-up.
    """

    socket: Path
    log: Path

    def cache_metric(self, name: str) -> float:
        """A figure of ``rerank_text`` on the metrics page."""
        return self.metric(f'{name}{{model="rerank_text"}}')

    def passages_encoded(self) -> int:
        """Rows that the encoder has had so far, without those of queries."""
        counters = self.counters()
        return int(counters["encoder"].rows - counters["query_tokenizer"].rows)


CACHE_MIB = 1


@pytest.fixture(scope="session")
def searching(exported: Callable[[str], Exported], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searching]:
    """The checkpoint with the longest chain. Nothing listens on the socket yet."""
    made = exported("query_residual-linear-openvino")
    repository = tmp_path_factory.mktemp("searching") / "repository"
    shutil.copytree(made.repository, repository)
    config_file = repository / "rerank_text" / "config.pbtxt"
    config = text_format.Parse(config_file.read_text(), ModelConfig())
    config.parameters[Parameter.EMBEDDING_CACHE_MIB.value].string_value = str(CACHE_MIB)
    config_file.write_text(text_format.MessageToString(config))
    # In /tmp: pytest's own folders may be too deep for a socket.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        socket, log = Path(folder, "s"), Path(folder, "triton.log")
        process = TritonProcess(repository, retrieval=f"unix:{socket}", log_path=log)
        process.command.append("--log-verbose=1")
        with (
            process as triton,
            triton_grpc.InferenceServerClient(triton.grpc_address) as client,
        ):
            yield Searching(
                made.checkpoint,
                repository,
                made.reference,
                triton.grpc_address,
                client,
                triton.metrics_address,
                socket,
                log,
            )
