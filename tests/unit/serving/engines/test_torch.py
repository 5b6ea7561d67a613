"""The torch engine on a CPU, against the fp32 reference with transformers' own attention."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resrank.core.errors import CheckpointError
from resrank.core.names import Model, Tensor
from resrank.core.prompt import PromptLayout
from resrank.core.scoring import score
from resrank.export.parity import TOLERANCES, ParityGate
from resrank.model.modeling import ResRankModel
from resrank.serving.batching import BatchingPolicy
from resrank.serving.engine_host import EncoderGraph, EngineLimits, EngineStep, RerankerGraph
from resrank.serving.engines import Engine, EngineError, EngineKind, EngineOptions, Precision, load_engine
from resrank.serving.step import StepRequest
from support.tiny_checkpoint import make_tiny_checkpoint
from support.tiny_families import DECODERS, make_family_checkpoint

LAYOUT = PromptLayout(before_query=(5, 6), before_passages=(7,), after_passages=(8,), eos_id=9, placeholder_id=0)
BUCKETS = {"token_buckets": "16,40,64", "sequence_buckets": "16,48,64", "candidate_buckets": "8,16"}
LIMITS = EngineLimits(vocabulary_size=64, max_tokens=64)


def options(precision: Precision = Precision.FP32) -> EngineOptions:
    return EngineOptions(EngineKind.TORCH, precision, threads=1)


class Case:
    """A checkpoint and the reference's answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = ResRankModel.from_checkpoint(folder)
        self.gate = ParityGate(self.model, LAYOUT)

    def engine(self, role: Model, precision: Precision = Precision.FP32) -> Engine:
        return load_engine(self.folder / role, options(precision))


# Query and key norms in both roles; local layers and a mask; products biased in code of its own; and projectors.
CHECKPOINTS = ["qwen3", "modernbert", "mpnet", "linear"]


@pytest.fixture(scope="module", params=CHECKPOINTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("torch") / request.param
    if request.param == "linear":
        make_tiny_checkpoint(folder, embedding_dim=32, hidden_size=48, query_residual=True)
    else:
        make_family_checkpoint(request.param, folder)
    return Case(folder)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("torch") / "linear"
    make_tiny_checkpoint(folder, embedding_dim=32, hidden_size=48, query_residual=True)
    return Case(folder)


@pytest.mark.parametrize("precision", Precision)
def test_every_precision_passes_the_parity_gate(case: Case, precision: Precision) -> None:
    encoder = case.gate.check_encoder(case.engine(Model.ENCODER, precision), options(precision))
    assert encoder.passed, encoder
    if case.folder.name in DECODERS or case.folder.name == "linear":  # else the reranker is none of the family's
        reranker = case.gate.check_reranker(case.engine(Model.RERANKER, precision), options(precision))
        assert reranker.passed, reranker


def test_low_precisions_are_low_and_differ_in_their_error(linear: Case) -> None:
    inputs = linear.gate.reranker_case.inputs
    exact, half, brain = (
        linear.engine(Model.RERANKER, precision).run(inputs)[Tensor.QUERY_STATE]
        for precision in (Precision.FP32, Precision.FP16, Precision.BF16)
    )
    half_error, brain_error = np.abs(half - exact).max(), np.abs(brain - exact).max()
    assert 0 < half_error < brain_error  # 11 bits of mantissa against 8


def reranker_requests() -> list[StepRequest]:
    """Queries and candidate counts of unequal sizes."""
    rng = np.random.default_rng(3)
    requests = []
    for query_tokens, count in ((4, 5), (20, 11), (9, 16), (4, 1), (30, 8)):
        batch = LAYOUT.batch([rng.integers(10, 60, query_tokens).tolist()], [count])
        candidates = rng.standard_normal((1, count, 32)).astype(np.float16)
        requests.append(
            StepRequest(
                {
                    Tensor.INPUT_IDS: batch.input_ids,
                    Tensor.PASSAGE_POSITIONS: batch.passage_positions,
                    Tensor.LAST_POSITION: batch.last_position,
                    Tensor.CANDIDATES: candidates,
                }
            )
        )
    return requests


def scores(request: StepRequest, outputs: Any) -> np.ndarray:
    query_embedding = np.ones((1, 32), np.float32)
    return score(
        outputs[Tensor.PASSAGE_STATES],
        outputs[Tensor.QUERY_STATE],
        request.inputs[Tensor.CANDIDATES],
        query_embedding,
        gate=1.0,
        normalize_states=True,
    )


@pytest.mark.parametrize("precision", Precision)
def test_padding_to_buckets_leaves_the_scores(linear: Case, precision: Precision) -> None:
    engine = linear.engine(Model.RERANKER, precision)
    policy = BatchingPolicy.on_gpu(Model.RERANKER, BUCKETS, max_rows=16, max_tokens=64)
    requests = reranker_requests()
    outcomes = EngineStep(engine, RerankerGraph(), LIMITS, policy, batch_rows=64).run(requests)
    for request, outcome in zip(requests, outcomes, strict=True):
        alone = engine.run(request.inputs)
        assert outcome[Tensor.PASSAGE_STATES].shape == alone[Tensor.PASSAGE_STATES].shape
        difference = np.abs(scores(request, outcome) - scores(request, alone)).max()
        assert difference <= TOLERANCES[precision].score


def test_padding_to_buckets_leaves_the_embeddings(case: Case) -> None:
    engine = case.engine(Model.ENCODER)
    policy = BatchingPolicy.on_gpu(Model.ENCODER, BUCKETS, max_rows=16, max_tokens=64)
    rng = np.random.default_rng(4)
    rows = [rng.integers(10, 60, (1, length)) for length in (3, 17, 41, 5, 64)]
    requests = [StepRequest({Tensor.INPUT_IDS: ids, Tensor.ATTENTION_MASK: np.ones_like(ids)}) for ids in rows]
    outcomes = EngineStep(engine, EncoderGraph(), LIMITS, policy, batch_rows=64).run(requests)
    for ids, outcome in zip(rows, outcomes, strict=True):
        with torch.no_grad():
            expected = case.model.encode(torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.int64)).numpy()
        np.testing.assert_allclose(outcome[Tensor.EMBEDDING], expected, atol=1e-5)


def test_two_instances_at_once_answer_as_alone(linear: Case) -> None:
    rng = np.random.default_rng(5)
    batches = []
    for _ in range(12):
        ids = rng.integers(10, 60, (int(rng.integers(1, 4)), int(rng.integers(3, 40))))
        batches.append({Tensor.INPUT_IDS.value: ids, Tensor.ATTENTION_MASK.value: np.ones_like(ids)})
    engines = [linear.engine(Model.ENCODER) for _ in range(2)]
    expected = [engines[0].run(batch)[Tensor.EMBEDDING] for batch in batches]
    answers: list[list[np.ndarray]] = [[], []]

    def ask(number: int) -> None:
        answers[number].extend(engines[number].run(batch)[Tensor.EMBEDDING] for batch in batches)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in answers:
        for mine, alone in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mine, alone)


def test_what_an_engine_returns_belongs_to_the_caller(linear: Case) -> None:
    engine, inputs = linear.engine(Model.ENCODER), linear.gate.encoder_case.inputs
    first = engine.run(inputs)[Tensor.EMBEDDING]
    kept = first.copy()
    first += 1  # writable
    np.testing.assert_array_equal(engine.run(inputs)[Tensor.EMBEDDING], kept)
    np.testing.assert_array_equal(first, kept + 1)


def test_attention_gets_no_mask_of_all_pairs(linear: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = torch.nn.functional.scaled_dot_product_attention
    masks: list[tuple[int, ...] | None] = []

    def watched(*arguments: Any, attn_mask: torch.Tensor | None = None, **named: Any) -> torch.Tensor:
        masks.append(None if attn_mask is None else tuple(attn_mask.shape))
        return attend(*arguments, attn_mask=attn_mask, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    inputs = linear.gate.encoder_case.inputs
    rows, length = inputs[Tensor.INPUT_IDS].shape
    linear.engine(Model.ENCODER).run(inputs)
    assert masks == [(rows, 1, 1, length)] * 2
    masks.clear()
    linear.engine(Model.RERANKER).run(linear.gate.reranker_case.inputs)
    assert masks == [None] * 2


def test_only_the_roles_own_weights_are_read(linear: Case, tmp_path: Path) -> None:
    shutil.copytree(linear.folder, tmp_path / "checkpoint")
    (tmp_path / "checkpoint/encoder/model.safetensors").write_bytes(b"damaged")
    engine = load_engine(tmp_path / "checkpoint/reranker", options())
    expected = linear.engine(Model.RERANKER).run(linear.gate.reranker_case.inputs)
    found = engine.run(linear.gate.reranker_case.inputs)
    np.testing.assert_array_equal(found[Tensor.QUERY_STATE], expected[Tensor.QUERY_STATE])
    with pytest.raises(CheckpointError, match=r"encoder: transformers cannot load it"):
        load_engine(tmp_path / "checkpoint/encoder", options())


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_are_as_many_as_asked_for(linear: Case, one_thread: None) -> None:
    load_engine(linear.folder / Model.ENCODER, EngineOptions(EngineKind.TORCH, Precision.FP32, threads=2))
    assert torch.get_num_threads() == 2


def test_a_folder_that_is_no_part_of_a_checkpoint_is_refused(linear: Case, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="torch runs a checkpoint's folder encoder or reranker, not linear"):
        load_engine(linear.folder, options())
    with pytest.raises(CheckpointError, match="no such file; a checkpoint folder holds"):
        load_engine(tmp_path / "encoder", options())


def test_a_gpu_that_is_not_there_is_refused(linear: Case) -> None:
    missing = torch.cuda.device_count()
    with pytest.raises(EngineError, match=rf"GPU {missing} is asked for, but torch .* finds {missing} on this machine"):
        load_engine(linear.folder / "encoder", EngineOptions(EngineKind.TORCH, Precision.BF16, device=missing))


def test_torch_that_is_not_installed_says_what_to_install(linear: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "resrank.serving.engines.torch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EngineError, match=r"torch is not installed .*: (uv )?pip install .*\[torch\]"):
        load_engine(linear.folder / "encoder", options())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and a CUDA build of torch")
@pytest.mark.parametrize("precision", Precision)
def test_a_gpu_passes_the_gate_too(case: Case, precision: Precision) -> None:
    chosen = EngineOptions(EngineKind.TORCH, precision, device=0)
    encoder = load_engine(case.folder / Model.ENCODER, chosen)
    reranker = load_engine(case.folder / Model.RERANKER, chosen)
    tolerance = TOLERANCES[precision].score
    assert case.gate.check_encoder(encoder, chosen).passed
    assert case.gate.check_reranker(reranker, chosen).score_difference <= tolerance
