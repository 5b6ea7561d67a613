"""Which engine an instance of ``encoder`` or ``reranker`` hosts, from what Triton says to ``initialize``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resrank.core.errors import InvalidInputError
from resrank.core.names import Model, Tensor
from resrank.serving.batching import GPU_ROWS, BatchingPolicy
from resrank.serving.engine import open_backend
from resrank.serving.engine_host import EncoderGraph, EngineStep, RerankerGraph, engine_path
from resrank.serving.engines import EngineError, EngineKind, EngineOptions, Precision, load_engine
from resrank.serving.python_backend import ModelInstance
from resrank.serving.queued import QueuedBackend
from resrank.serving.step import StepRequest
from support.pb_metrics import PbMetrics
from support.tiny_checkpoint import make_tiny_checkpoint

from .test_deferred import Answered
from .test_python_backend import PbUtils


def triton_args(folder: Path, model: Model, *, gpu: int | None = None, **parameters: str) -> dict[str, str]:
    """As Triton's Python backend gives them: everything is text."""
    config = {
        "max_batch_size": 16,
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
    }
    return {
        "model_name": model,
        "model_version": "1",
        "model_repository": str(folder / model),
        "model_config": json.dumps(config),
        "model_instance_name": f"{model}_0",
        "model_instance_kind": "CPU" if gpu is None else "GPU",
        "model_instance_device_id": str(gpu or 0),
    }


def test_an_instance_knows_its_folder_its_config_and_its_gpu(tmp_path: Path) -> None:
    on_cpu = ModelInstance.from_args(triton_args(tmp_path, Model.ENCODER, engine="torch"))
    assert on_cpu == ModelInstance(tmp_path / "encoder" / "1", {"engine": "torch"}, 16, None)
    assert ModelInstance.from_args(triton_args(tmp_path, Model.ENCODER, gpu=0)).gpu == 0
    assert ModelInstance.from_args(triton_args(tmp_path, Model.ENCODER, gpu=3)).gpu == 3


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (EngineKind.OPENVINO, "model.onnx"),
        (EngineKind.ONNXRUNTIME, "model.onnx"),
        (EngineKind.TORCH, "checkpoint/reranker"),
    ],
)
def test_each_engine_reads_its_own_file(tmp_path: Path, kind: EngineKind, expected: str) -> None:
    assert engine_path(tmp_path, Model.RERANKER, kind) == tmp_path / expected


@pytest.mark.parametrize("kind", [EngineKind.TENSORRT, EngineKind.TENSORRT_RTX])
def test_plans_are_nothing_for_a_python_model(tmp_path: Path, kind: EngineKind) -> None:
    with pytest.raises(EngineError, match="plans run in Triton's own TensorRT backend, not in a Python model"):
        load_engine(tmp_path / "model.plan", EngineOptions(kind, Precision.BF16))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As far as the engine host reads it: a checkpoint in the version folder of both engine models."""
    folder = tmp_path_factory.mktemp("repository")
    make_tiny_checkpoint(folder / "encoder/1/checkpoint", embedding_dim=32, hidden_size=48)
    (folder / "reranker").symlink_to(folder / "encoder")
    return folder


PARAMETERS = {
    "engine": "torch",
    "precision": "fp32",
    "threads": "1",
    "vocabulary_size": "64",
    "max_tokens": "64",
    "token_buckets": "16,32,48",
    "sequence_buckets": "16,64",
    "candidate_buckets": "4,8",
}


@pytest.mark.parametrize("graph", [EncoderGraph(), RerankerGraph()], ids=lambda graph: graph.role.value)
def test_torch_on_the_cpu_is_hosted_from_tritons_arguments(repository: Path, graph: Any) -> None:
    step = EngineStep.load(ModelInstance.from_args(triton_args(repository, graph.role, **PARAMETERS)), graph)
    ids = np.array([[5, 6, 7]])
    inputs: dict[Tensor, np.ndarray] = {Tensor.INPUT_IDS: ids, Tensor.ATTENTION_MASK: np.ones_like(ids)}
    if graph.role is Model.RERANKER:
        inputs = {
            Tensor.INPUT_IDS: ids,
            Tensor.PASSAGE_POSITIONS: np.array([[1]]),
            Tensor.LAST_POSITION: np.array([[2]]),
            Tensor.CANDIDATES: np.ones((1, 1, 32), np.float16),
        }
    (outcome,) = step.run([StepRequest(inputs)])
    assert isinstance(outcome, dict), outcome
    shapes = {name: array.shape for name, array in outcome.items()}
    wanted = {Tensor.PASSAGE_STATES: (1, 1, 32), Tensor.QUERY_STATE: (1, 32)}
    assert shapes == (wanted if graph.role is Model.RERANKER else {Tensor.EMBEDDING: (1, 32)})


def test_a_gpu_that_triton_names_reaches_the_engine(repository: Path) -> None:
    args = triton_args(repository, Model.ENCODER, gpu=77, **PARAMETERS)
    with pytest.raises(EngineError, match="GPU 77 is asked for"):
        EngineStep.load(ModelInstance.from_args(args), EncoderGraph())


def test_a_gpus_policy_is_the_configs_buckets_and_batch() -> None:
    policy = BatchingPolicy.on_gpu(Model.RERANKER, PARAMETERS, max_rows=20, max_tokens=64)
    assert (policy.lengths, policy.candidates) == ((16, 64), (4, 8))
    assert policy.row_counts == (*(rows for rows in GPU_ROWS if rows < 20), 20)
    assert [policy.padded_rows(rows) for rows in (1, 5, 16, 17, 20)] == [1, 6, 16, 20, 20]
    encoder = BatchingPolicy.on_gpu(Model.ENCODER, PARAMETERS, max_rows=20, max_tokens=64)
    assert (encoder.lengths, encoder.candidates) == ((16, 32, 48), ())


def test_a_call_takes_no_more_rows_than_the_config_allows() -> None:
    policy = BatchingPolicy.on_gpu(Model.ENCODER, PARAMETERS, max_rows=4, max_tokens=64)
    groups = policy.group([10] * 11)
    assert sorted(row for group in groups for row in group.tolist()) == list(range(11))
    assert max(len(group) for group in groups) == 4


def warm_up(repository: Path, ids: list[int]) -> dict[str, Any]:
    """A sample as export writes it, and what Triton says of it."""
    folder = repository / "encoder" / "warmup"
    folder.mkdir(exist_ok=True)
    inputs = {}
    for name, numbers in (("INPUT_IDS", ids), ("ATTENTION_MASK", [1] * len(ids))):
        np.array(numbers, np.int64).tofile(folder / f"query.{name}")
        dims = [str(len(ids))]  # protobuf's JSON
        inputs[name] = {"data_type": "TYPE_INT64", "dims": dims, "input_data_file": f"query.{name}"}
    return {"model_warmup": [{"name": "query", "batch_size": 1, "inputs": inputs}]}


def test_each_of_several_engines_is_warmed(repository: Path) -> None:
    """With a sample that the engine refuses, which shows that it was computed."""
    args = triton_args(repository, Model.ENCODER, **PARAMETERS, max_queue_size="8", engines="2")
    config = {**json.loads(args["model_config"]), "input": [], **warm_up(repository, [5, 99])}
    pb = PbUtils()
    pb.MetricFamily = PbMetrics().MetricFamily  # type: ignore[attr-defined]
    with pytest.raises(InvalidInputError, match="not in the vocabulary"):
        open_backend(pb, {**args, "model_config": json.dumps(config)}, EncoderGraph())


@pytest.mark.parametrize("own_queue", [True, False])
def test_the_config_says_where_requests_wait(repository: Path, own_queue: bool) -> None:
    bounds = {"max_queue_size": "8", "engines": "2", "batch_rows": "3"} if own_queue else {}
    args = triton_args(repository, Model.ENCODER, **PARAMETERS, **bounds)
    config = {**json.loads(args["model_config"]), **warm_up(repository, [5, 6])}
    config["input"] = [{"name": "INPUT_IDS"}, {"name": "ATTENTION_MASK"}]
    pb = PbUtils()
    pb.MetricFamily = PbMetrics().MetricFamily  # type: ignore[attr-defined]
    host = open_backend(pb, {**args, "model_config": json.dumps(config)}, EncoderGraph())
    ids = np.array([[5, 6, 7]])
    request = Answered({"INPUT_IDS": ids, "ATTENTION_MASK": np.ones_like(ids)})
    answered = host.execute([request])
    if own_queue:
        assert answered is None
        vectors = request.answer()
    else:
        assert request.sent == []
        assert answered is not None
        vectors = answered[0].output_tensors[0].array
    host.close()
    assert vectors.shape == (1, 32)
    assert isinstance(host, QueuedBackend) == own_queue


def test_a_batch_has_as_many_rows_as_one_call_takes(repository: Path) -> None:
    def rows(batch_rows: str) -> list[int]:
        parameters = {name: value for name, value in PARAMETERS.items() if not name.endswith("buckets")}
        args = triton_args(repository, Model.ENCODER, **parameters, batch_rows=batch_rows)
        step = EngineStep.load(ModelInstance.from_args(args), EncoderGraph())
        return [step.batch_size(waiting) for waiting in (1, 3, 4, 7, 100)]

    assert rows("4") == [1, 2, 4, 4, 4]
    assert rows("6") == [1, 2, 4, 4, 4]
    assert rows("16") == [1, 2, 4, 4, 16]
