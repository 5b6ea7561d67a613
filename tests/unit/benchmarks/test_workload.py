from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.measurement import BenchmarkError
from resrank.benchmarks.workload import rerank_workload
from resrank.core.checkpoint import CheckpointSpec, SlotContent, SlotSpec, read_spec
from resrank.core.names import Model
from resrank.core.tokenization import load_tokenizer
from resrank.export.manifest import CheckpointFacts, ManifestError, Runtime
from resrank.serving.engines import EngineKind, EngineOptions, Precision
from support.tiny_checkpoint import make_tiny_checkpoint
from support.tiny_manifest import write_tiny_manifest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks") / "checkpoint"
    make_tiny_checkpoint(folder, max_passages=100, max_query_tokens=32)
    return folder


def write_manifest(repository: Path, spec: CheckpointSpec, runtime: Runtime = Runtime.CPU) -> None:
    facts = CheckpointFacts(name=spec.name, sha256=spec.digest(), encoder_sha256="e" * 64)
    write_tiny_manifest(repository, runtime=runtime, checkpoint=facts)


def test_the_request_has_24_query_tokens_and_100_candidates(checkpoint: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "repository", read_spec(checkpoint))
    workload = rerank_workload(Deployment.open(tmp_path / "repository", checkpoint))
    tokenizer = load_tokenizer(checkpoint / "reranker")
    assert len(tokenizer.encode(workload.query, add_special_tokens=False).ids) == 24
    inputs = workload.reranker_inputs
    assert inputs["CANDIDATES"].shape == (1, 100, 32)
    assert inputs["CANDIDATES"].dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(workload.candidates.astype(np.float64), axis=1), 1, atol=2e-3)
    assert inputs["PASSAGE_POSITIONS"].shape == (1, 100)
    assert inputs["LAST_POSITION"][0, 0] == inputs["INPUT_IDS"].shape[1] - 1  # one row: nothing is padded
    assert workload.encoder_inputs["ATTENTION_MASK"].all()


def test_a_reranker_without_text_gets_relations_and_the_encoder_counts_the_query_s_tokens(tmp_path: Path) -> None:
    spec = make_tiny_checkpoint(
        tmp_path / "checkpoint", compact=True, query_residual=True, residual_gate=0.0, score_residual=0.3,
        slots=SlotSpec(content=SlotContent.RELATIONS, neighbors=4), max_passages=100,
    )  # fmt: skip
    write_manifest(tmp_path / "repository", spec)
    workload = rerank_workload(Deployment.open(tmp_path / "repository", tmp_path / "checkpoint"))
    tokenizer = load_tokenizer(tmp_path / "checkpoint" / "encoder")
    assert len(tokenizer.encode(workload.query, add_special_tokens=False).ids) == 24
    inputs = workload.reranker_inputs
    assert set(inputs) == {"INPUT_IDS", "PASSAGE_POSITIONS", "RELATIONS"}
    assert inputs["INPUT_IDS"].shape == inputs["PASSAGE_POSITIONS"].shape == (1, 100)
    assert inputs["RELATIONS"].shape == (1, 100, spec.reranker.slots.relation_width)
    served = workload.served_reranker_inputs
    assert set(served) == set(inputs)
    np.testing.assert_array_equal(served["RELATIONS"][:, :100], inputs["RELATIONS"])


def test_a_checkpoint_that_takes_fewer_candidates_is_refused(tmp_path: Path) -> None:
    spec = make_tiny_checkpoint(tmp_path / "checkpoint", max_passages=99)
    write_manifest(tmp_path / "repository", spec)
    with pytest.raises(BenchmarkError, match=r"reranker\.max_passages of 100 or more, the checkpoint has 99"):
        rerank_workload(Deployment.open(tmp_path / "repository", tmp_path / "checkpoint"))


def test_engine_options_are_the_manifest_s(checkpoint: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "repository", read_spec(checkpoint))
    options = Deployment.open(tmp_path / "repository", checkpoint).engine_options(Model.RERANKER)
    assert options == EngineOptions(EngineKind.ONNXRUNTIME, Precision.FP32, threads=0)


def test_a_folder_without_manifest_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"has no manifest\.json.* resrank export"):
        Deployment.open(tmp_path, checkpoint)


def test_a_repository_of_another_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    spec = read_spec(checkpoint)
    write_manifest(tmp_path / "repository", spec.model_copy(update={"name": "another"}))
    with pytest.raises(BenchmarkError, match=f"but .* is {spec.digest()}"):
        Deployment.open(tmp_path / "repository", checkpoint)


def test_a_repository_for_gpus_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "repository", read_spec(checkpoint), Runtime.TENSORRT)
    with pytest.raises(BenchmarkError, match="was exported for runtime tensorrt, but this measures CPU engines"):
        Deployment.open(tmp_path / "repository", checkpoint)
