"""``rerank_prompt`` and ``residual_scoring`` of a checkpoint with relations: canonical order in, the caller's out."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from resrank.core.checkpoint import (
    CheckpointSpec,
    EncoderSpec,
    FusionSpec,
    Pooling,
    Projector,
    RerankerSpec,
    SlotContent,
    SlotSpec,
    write_spec,
)
from resrank.core.fusion import CosineMap
from resrank.core.names import Tensor
from resrank.core.relations import canonical_order, relations
from resrank.serving.engine_host import EngineLimits, RerankerGraph
from resrank.serving.rerank_prompt import PromptingStep
from resrank.serving.residual_scoring import ResidualScoringStep
from resrank.serving.step import Arrays, StepRequest
from support.triton_requests import unit_vectors

DIM, NEIGHBORS, MOST = 12, 5, 16
MAP = CosineMap(slope=4.84, center=0.72, offset=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version folder: the fields are all that these steps read of a reranker without text."""
    made = tmp_path_factory.mktemp("steps")
    spec = CheckpointSpec(
        name="tiny",
        encoder=EncoderSpec(
            source="-",
            sha256="0" * 64,
            embedding_dim=DIM,
            pooling=Pooling.MEAN,
            max_passage_tokens=32,
            max_query_tokens=32,
        ),
        reranker=RerankerSpec(
            source="-",
            sha256="0" * 64,
            hidden_size=24,
            max_query_tokens=32,
            max_passages=MOST,
            prompt=None,
            eos_token=None,
            slots=SlotSpec(content=SlotContent.RELATIONS, neighbors=NEIGHBORS),
        ),
        fusion=FusionSpec(
            projector=Projector.LINEAR,
            input_scale=3.0,
            residual_gate=0.0,
            query_residual=True,
            cosine_map=MAP,
            score_residual=0.3,
        ),
    )
    write_spec(spec, made)
    return made


def run(step: PromptingStep | ResidualScoringStep, inputs: Arrays) -> Arrays:
    (outcome,) = step.run([StepRequest(inputs)])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def laid_out(folder: Path, query: np.ndarray, candidates: np.ndarray, **buckets: str) -> Arrays:
    return run(
        PromptingStep(folder, buckets),
        {
            Tensor.QUERY: np.array([[b"moon"]], np.object_),
            Tensor.QUERY_EMBEDDING: query[None],
            Tensor.CANDIDATES: candidates[None],
        },
    )


def scored(folder: Path, query: np.ndarray, candidates: np.ndarray, factor: float = 0.5) -> np.ndarray:
    """What the steps make of a reranker whose numbers depend on a place's relations and on all before it."""
    prompt = laid_out(folder, query, candidates)
    weights = np.random.default_rng(0).standard_normal(prompt[Tensor.RELATIONS].shape[-1]).astype(np.float32)
    residuals = np.cumsum(prompt[Tensor.RELATIONS] @ weights, axis=1, dtype=np.float32)
    inputs = {name: prompt[name] for name in (Tensor.CANDIDATES, Tensor.CANDIDATE_COUNT, Tensor.CANDIDATE_PLACES)}
    step = ResidualScoringStep(folder, {"score_residual": str(factor)})
    return run(step, {**inputs, Tensor.SCORE_RESIDUALS: residuals, Tensor.QUERY_EMBEDDING: query[None]})[Tensor.SCORES][
        0
    ]


def test_the_engine_gets_relations_in_canonical_order_and_nothing_that_it_does_not_read(folder: Path) -> None:
    query, candidates = unit_vectors(1, DIM, seed=9)[0].astype(np.float32), unit_vectors(7, DIM, seed=1)
    prompt = laid_out(folder, query, candidates)
    order = canonical_order(query, candidates)
    ordered = candidates[order.order]
    assert Tensor.LAST_POSITION not in prompt
    assert prompt[Tensor.INPUT_IDS].tolist() == [[0] * 7]
    assert prompt[Tensor.PASSAGE_POSITIONS].tolist() == [list(range(7))]
    assert prompt[Tensor.CANDIDATE_PLACES].tolist() == [order.places.tolist()]
    np.testing.assert_array_equal(prompt[Tensor.CANDIDATES][0], ordered)
    expected = relations(query, ordered, neighbors=NEIGHBORS, cosine_map=MAP)
    np.testing.assert_array_equal(prompt[Tensor.RELATIONS][0], expected)


def test_buckets_pad_relations_as_they_pad_vectors(folder: Path) -> None:
    query, candidates = unit_vectors(1, DIM, seed=9)[0].astype(np.float32), unit_vectors(3, DIM, seed=1)
    prompt = laid_out(folder, query, candidates, sequence_buckets="8,16", candidate_buckets="5,16")
    assert prompt[Tensor.INPUT_IDS].shape == (1, 8)
    for name in (Tensor.RELATIONS, Tensor.CANDIDATES):
        padded = prompt[name][0]
        assert len(padded) == 5
        assert (padded[3:] == padded[2]).all()
    assert prompt[Tensor.PASSAGE_POSITIONS].tolist() == [[0, 1, 2, 2, 2]]
    assert prompt[Tensor.CANDIDATE_PLACES].shape == (1, 3)


@pytest.mark.parametrize("count", range(1, MOST + 1))
def test_an_engine_takes_lists_of_every_length_as_buckets_pad_them(folder: Path, count: int) -> None:
    """Six candidates are padded to a sequence of 8 and to 16 slots, and an engine gives each slot a position."""
    query, candidates = unit_vectors(1, DIM, seed=9)[0].astype(np.float32), unit_vectors(count, DIM, seed=1)
    prompt = laid_out(folder, query, candidates, sequence_buckets="8,16", candidate_buckets="5,16")
    width, length = (prompt[name].shape[1] for name in (Tensor.PASSAGE_POSITIONS, Tensor.INPUT_IDS))
    assert (width, length) == ((5, 8) if count <= 5 else (16, 16))
    limits = EngineLimits(vocabulary_size=100, max_tokens=16, max_candidates=16)
    inputs = {name: prompt[name] for name in (Tensor.INPUT_IDS, Tensor.PASSAGE_POSITIONS, Tensor.RELATIONS)}
    assert RerankerGraph().lengths(inputs, limits).tolist() == [width]


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, MOST), distinct=st.integers(1, MOST))
def test_shuffled_candidates_have_the_same_scores_to_the_bit(
    folder: Path, seed: int, count: int, distinct: int
) -> None:
    rng = np.random.default_rng(seed)
    query = unit_vectors(1, DIM, seed=seed)[0].astype(np.float32)
    candidates = unit_vectors(distinct, DIM, seed=seed + 1)[rng.integers(0, distinct, count)]
    shuffle = rng.permutation(count)
    scores = scored(folder, query, candidates)
    assert scored(folder, query, candidates[shuffle]).tobytes() == scores[shuffle].tobytes()


def test_a_factor_of_zero_gives_the_mapped_cosines_to_the_bit(folder: Path) -> None:
    query, candidates = unit_vectors(1, DIM, seed=9)[0].astype(np.float32), unit_vectors(7, DIM, seed=1)
    found = scored(folder, query, candidates, factor=0.0)
    cosines = candidates.astype(np.float64) @ query / np.linalg.norm(candidates.astype(np.float64), axis=1)
    np.testing.assert_allclose(found, MAP.apply(cosines / np.linalg.norm(query)), atol=1e-5)


def test_products_stay_on_the_thread_that_asks(folder: Path) -> None:
    """Two threads for a product of microseconds wait for a core that an engine has."""
    with threadpool_limits(2, user_api="blas"):
        PromptingStep(folder)
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}


_FAULTS_OF_FRESH_ARRAYS = """
import resource, sys
from pathlib import Path
import numpy as np
from resrank.serving.rerank_prompt import PromptingStep

PromptingStep(Path(sys.argv[1]))
for times in (10, 100):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        arrays = [np.ones((100, 384)) for _ in range(4)]
        del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have rules of their own")
def test_memory_of_one_pass_is_there_for_the_next(folder: Path) -> None:
    """In a process of its own, since what any other code here has freed decides what this one keeps."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    told = subprocess.run(
        [sys.executable, "-c", _FAULTS_OF_FRESH_ARRAYS, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(told.stdout) < 100  # of 30,000 pages written
