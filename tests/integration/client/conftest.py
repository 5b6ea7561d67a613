"""A real Triton with small models whose answers a test can compute itself, and both clients behind one interface."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resrank.client import AsyncResRankClient, ResRankClient
from resrank.core.calibration import Calibration, Isotonic, Platt
from resrank.stack.triton_process import TritonProcess

ENCODER_SHA256 = "e" * 64
MAX_PASSAGES = 5
EMBED_BATCH = 4
CALIBRATION = Calibration(Platt(4.0, -1.5), Isotonic((0.0, 0.5, 1.0), (0.1, 0.1, 0.7)), 0.3)

RERANK = f"""
name: "rerank"
platform: "ensemble"
max_batch_size: 1
input {{ name: "QUERY" data_type: TYPE_STRING dims: [ 1 ] }}
input {{ name: "CANDIDATES" data_type: TYPE_FP16 dims: [ -1, 4 ] }}
output {{ name: "SCORES" data_type: TYPE_FP32 dims: [ -1 ] }}
ensemble_scheduling {{
  step {{
    model_name: "scorer"
    model_version: -1
    input_map {{ key: "QUERY" value: "QUERY" }}
    input_map {{ key: "CANDIDATES" value: "CANDIDATES" }}
    output_map {{ key: "SCORES" value: "SCORES" }}
  }}
}}
parameters {{ key: "embedding_dim" value {{ string_value: "4" }} }}
parameters {{ key: "max_passages" value {{ string_value: "{MAX_PASSAGES}" }} }}
parameters {{ key: "encoder_sha256" value {{ string_value: "{ENCODER_SHA256}" }} }}
parameters {{ key: "calibration" value {{ string_value: '{CALIBRATION.to_json()}' }} }}
"""
SCORER = """
name: "scorer"
backend: "python"
max_batch_size: 1
input { name: "QUERY" data_type: TYPE_STRING dims: [ 1 ] }
input { name: "CANDIDATES" data_type: TYPE_FP16 dims: [ -1, 4 ] }
output { name: "SCORES" data_type: TYPE_FP32 dims: [ -1 ] }
instance_group { count: 1 kind: KIND_CPU }
dynamic_batching {
  default_queue_policy {
    max_queue_size: 8
    default_timeout_microseconds: 60000000
    allow_timeout_override: true
    timeout_action: REJECT
  }
}
"""
# Cosine with the first axis, less a thousandth for each place in the pass: so the score tells which pass it came from.
# A query in JSON makes it slow, makes it fail, or makes it tell what came with the request.
SCORER_PY = """
import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        query = pb_utils.get_input_tensor_by_name(request, "QUERY").as_numpy()[0, 0].decode()
        candidates = pb_utils.get_input_tensor_by_name(request, "CANDIDATES").as_numpy()[0].astype(np.float32)
        orders = json.loads(query) if query.startswith("{") else {}
        time.sleep(orders.get("sleep", 0))
        if orders.get("tell"):
            told = {"timeout_us": request.timeout(), **json.loads(request.parameters())}
            return refuse("TOLD: " + json.dumps(told))
        if "refuse" in orders:
            return refuse(orders["refuse"])
        if "break" in orders:
            raise ValueError(orders["break"])
        scores = candidates[:, 0] / np.linalg.norm(candidates, axis=1) - 0.001 * np.arange(len(candidates))
        return pb_utils.InferenceResponse([pb_utils.Tensor("SCORES", scores[None].astype(np.float32))])


def refuse(message):
    error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(error=error)
"""
EMBED = f"""
backend: "python"
max_batch_size: {EMBED_BATCH}
input {{ name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] }}
output {{ name: "EMBEDDING" data_type: TYPE_FP32 dims: [ 4 ] }}
instance_group {{ count: 1 kind: KIND_CPU }}
"""
# How often a, b, c and d occur, plus a hundredth.
EMBED_PY = """
import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        texts = [raw.decode() for raw in pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()[:, 0]]
        truncate = json.loads(request.parameters()).get("truncate", False)
        for row, text in enumerate(texts):
            if len(text) > 40 and not truncate:
                name = "TEXT" if len(texts) == 1 else f"TEXT[{row}]"
                message = f"{name}: too many tokens (limit 40, got {len(text)})"
                error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(error=error)
        counts = np.array([[text[:40].count(letter) + 0.01 for letter in "abcd"] for text in texts], np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", counts)])
"""
RERANK_TEXT = """
name: "rerank_text"
backend: "python"
max_batch_size: 1
input { name: "QUERY" data_type: TYPE_STRING dims: [ 1 ] }
input { name: "PASSAGES" data_type: TYPE_STRING dims: [ -1 ] }
output { name: "SCORES" data_type: TYPE_FP32 dims: [ -1 ] }
instance_group { count: 1 kind: KIND_CPU }
"""
# The share of a's in each passage.
RERANK_TEXT_PY = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            passages = pb_utils.get_input_tensor_by_name(request, "PASSAGES").as_numpy()[0]
            shares = np.array([[text.count(b"a") / len(text) for text in passages]], np.float32)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SCORES", shares)]))
        return responses
"""
SEARCH = """
name: "search"
backend: "python"
max_batch_size: 1
input { name: "QUERY" data_type: TYPE_STRING dims: [ 1 ] }
output { name: "IDS" data_type: TYPE_STRING dims: [ -1 ] }
instance_group { count: 1 kind: KIND_CPU }
"""
# Tells what came with the request; what it finds is tested where the real one is (tests/integration/serving).
SEARCH_PY = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                error=pb_utils.TritonError("TOLD: " + request.parameters(), pb_utils.TritonError.INVALID_ARG)
            )
            for request in requests
        ]
"""

Make = Callable[..., Any]


def write_model(repository: Path, name: str, config: str, code: str | None) -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    if code is not None:
        (version / "model.py").write_text(code)


def write_rerank(repository: Path) -> Path:
    write_model(repository, "rerank", RERANK, None)
    write_model(repository, "scorer", SCORER, SCORER_PY)
    return repository


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    repository = write_rerank(tmp_path_factory.mktemp("client") / "repository")
    write_model(repository, "search", SEARCH, SEARCH_PY)
    for name in ("embed_query", "embed_passage", "embed_bulk"):
        write_model(repository, name, f'name: "{name}"\n{EMBED}', EMBED_PY)
    write_model(repository, "rerank_text", RERANK_TEXT, RERANK_TEXT_PY)
    with TritonProcess(repository) as process:
        yield process


class Blocking:
    """An asyncio client whose coroutines are run to their end, so that one test serves both clients."""

    def __init__(self, client: AsyncResRankClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._runner.run(method(*args, **kwargs))


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(params=["threads", "asyncio"])
def make(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Make]:
    """``make(address, **options)`` makes a client; every test that takes this runs with both kinds."""
    made: list[Any] = []

    def make_client(*args: Any, **options: Any) -> Any:
        if request.param == "threads":
            client: Any = ResRankClient(*args, **options)
        else:
            client = Blocking(AsyncResRankClient(*args, **options), runner)
        made.append(client)
        return client

    yield make_client
    for client in made:
        client.close()


@pytest.fixture
def client(make: Make, triton: TritonProcess) -> Any:
    return make(triton.grpc_address)


@pytest.fixture(scope="session")
def triton_without_texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """A server with the ``rerank`` ensemble alone, which passes the headers of requests on to its models."""
    process = TritonProcess(write_rerank(tmp_path_factory.mktemp("client") / "rerank"))
    process.command.append("--grpc-header-forward-pattern=.*")
    with process:
        yield process
