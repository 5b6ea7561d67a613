"""Whatever batch a request is in, the engine sees its rows whole and its answer is its own.

The engine here is arithmetic that gives itself away when padding leaks in or rows are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.errors import CheckpointError, InvalidInputError
from resrank.core.names import Tensor
from resrank.core.prompt import PromptLayout, pad_candidates
from resrank.serving.batching import BatchingPolicy
from resrank.serving.engine_host import EncoderGraph, EngineLimits, EngineStep, RerankerGraph
from resrank.serving.step import StepRequest

LIMITS = EngineLimits(vocabulary_size=100, max_tokens=64)
LAYOUT = PromptLayout(before_query=(1, 2), before_passages=(3,), after_passages=(4,), eos_id=5, placeholder_id=0)
DIM = 3


class CountingEngine:
    """Keeps the shapes of what it computed."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.candidates: list[tuple[int, ...]] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.shapes.append(inputs[Tensor.INPUT_IDS].shape)
        if Tensor.CANDIDATES in inputs:
            self.candidates.append(inputs[Tensor.CANDIDATES].shape)
        return self.compute(inputs)

    def compute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise NotImplementedError


class EncoderArithmetic(CountingEngine):
    """[number of tokens, sum of ids, sum of id times place] over what the mask shows."""

    def compute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        mask = inputs[Tensor.ATTENTION_MASK]
        ids = inputs[Tensor.INPUT_IDS] * mask
        columns = [mask.sum(1), ids.sum(1), (ids * np.arange(ids.shape[1])).sum(1)]
        return {Tensor.EMBEDDING.value: np.stack(columns, axis=1).astype(np.float32)}


class RerankerArithmetic(CountingEngine):
    """Running sums over the sequence with the candidates scattered in: causal, and order-dependent."""

    def compute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids, slots, last = (inputs[name] for name in (Tensor.INPUT_IDS, Tensor.PASSAGE_POSITIONS, Tensor.LAST_POSITION))
        sequence = np.repeat(ids[:, :, None], DIM, axis=2).astype(np.float64)
        rows = np.arange(len(ids))[:, None]
        sequence[rows, slots] = inputs[Tensor.CANDIDATES]
        states = np.cumsum(sequence * np.arange(1, ids.shape[1] + 1)[:, None], axis=1)
        return {
            Tensor.PASSAGE_STATES.value: states[rows, slots].astype(np.float32),
            Tensor.QUERY_STATE.value: states[rows, last][:, 0].astype(np.float32),
        }


def encoder_request(lengths: list[int], seed: int = 0) -> StepRequest:
    ids = np.random.default_rng(seed).integers(1, 100, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return StepRequest({Tensor.INPUT_IDS: ids * mask, Tensor.ATTENTION_MASK: mask})


def reranker_request(query: list[int], count: int, rows: int = 1, padding: int = 0, seed: int = 0) -> StepRequest:
    batch = LAYOUT.batch([query] * rows, [count] * rows)
    candidates = np.random.default_rng(seed).integers(1, 9, (rows, count, DIM)).astype(np.float16)
    return StepRequest(
        {
            Tensor.INPUT_IDS: np.pad(batch.input_ids, ((0, 0), (0, padding))),
            Tensor.PASSAGE_POSITIONS: np.pad(batch.passage_positions, ((0, 0), (0, padding)), mode="edge"),
            Tensor.LAST_POSITION: batch.last_position,
            Tensor.CANDIDATES: pad_candidates(candidates, count + padding),
        }
    )


def on_cpu(graph: Any) -> BatchingPolicy:
    return BatchingPolicy.on_cpu(max_rows=64, max_tokens=LIMITS.max_tokens)


def on_gpu(graph: Any) -> BatchingPolicy:
    buckets = {"token_buckets": "8,24,64", "sequence_buckets": "16,40,64", "candidate_buckets": "4,10,23"}
    return BatchingPolicy.on_gpu(graph.role, buckets, max_rows=8, max_tokens=LIMITS.max_tokens)


def run(
    graph: Any,
    requests: list[StepRequest],
    policy: Callable[[Any], BatchingPolicy] = on_cpu,
    limits: EngineLimits = LIMITS,
) -> tuple[list[Any], CountingEngine]:
    engine: CountingEngine = EncoderArithmetic() if isinstance(graph, EncoderGraph) else RerankerArithmetic()
    return EngineStep(engine, graph, limits, policy(graph), batch_rows=64).run(requests), engine


devices = pytest.mark.parametrize("policy", [on_cpu, on_gpu])


@devices
@given(batch=st.lists(st.lists(st.integers(1, 64), min_size=1, max_size=4), min_size=1, max_size=6))
def test_encoder_rows_find_their_way_back(policy: Callable[[Any], BatchingPolicy], batch: list[list[int]]) -> None:
    requests = [encoder_request(lengths, seed) for seed, lengths in enumerate(batch)]
    outcomes, _ = run(EncoderGraph(), requests, policy)
    for request, outcome in zip(requests, outcomes, strict=True):
        alone = EncoderArithmetic().run({name: request.inputs[name] for name in request.inputs})
        np.testing.assert_array_equal(outcome[Tensor.EMBEDDING], alone[Tensor.EMBEDDING])


shapes = st.tuples(
    st.lists(st.integers(6, 99), min_size=1, max_size=20), st.integers(1, 20), st.integers(1, 3), st.integers(0, 3)
)


@devices
@given(batch=st.lists(shapes, min_size=1, max_size=6))
def test_reranker_rows_find_their_way_back(
    policy: Callable[[Any], BatchingPolicy], batch: list[tuple[list[int], int, int, int]]
) -> None:
    requests = [reranker_request(*shape, seed=seed) for seed, shape in enumerate(batch)]
    outcomes, _ = run(RerankerGraph(), requests, policy)
    for request, outcome in zip(requests, outcomes, strict=True):
        alone = RerankerArithmetic().run({name: request.inputs[name] for name in request.inputs})
        np.testing.assert_array_equal(outcome[Tensor.PASSAGE_STATES], alone[Tensor.PASSAGE_STATES])
        np.testing.assert_array_equal(outcome[Tensor.QUERY_STATE], alone[Tensor.QUERY_STATE])
        assert outcome[Tensor.PASSAGE_STATES].dtype == np.float32


def test_a_call_has_no_more_padding_than_its_longest_row_needs() -> None:
    _, engine = run(EncoderGraph(), [encoder_request([3, 64]), encoder_request([4])])
    assert engine.shapes == [(1, 64), (2, 16)]


def test_similar_rows_of_several_requests_share_a_call() -> None:
    _, engine = run(RerankerGraph(), [reranker_request([7], 5), reranker_request([7, 8, 9], 6, rows=2)])
    assert LAYOUT.length(3, 6) == 14
    assert engine.shapes == [(1, 16), (2, 16)]  # three are split, since each number of rows is a shape more


def test_a_cpu_engine_meets_few_shapes_whatever_is_asked() -> None:
    rng = np.random.default_rng(0)
    requests = [encoder_request(rng.integers(1, 65, rng.integers(1, 30)).tolist()) for _ in range(200)]
    shapes = {shape for request in requests for shape in run(EncoderGraph(), [request])[1].shapes}
    assert {rows for rows, _ in shapes} <= {1, 2, 4, 8, 16}
    assert {length for _, length in shapes} == {16, 32, 48, 64}


@given(rows=st.lists(st.lists(st.integers(1, 64), min_size=1, max_size=8), min_size=1, max_size=8))
def test_a_gpu_meets_few_shapes_and_no_larger_batch_than_it_takes(rows: list[list[int]]) -> None:
    _, engine = run(EncoderGraph(), [encoder_request(lengths) for lengths in rows], on_gpu)
    assert {batch for batch, _ in engine.shapes} <= {1, 2, 3, 4, 6, 8}
    assert {width for _, width in engine.shapes} <= {8, 24, 64}


def test_on_a_gpu_rows_sequence_and_candidates_are_padded_to_buckets() -> None:
    requests = [reranker_request([7, 8, 9], count) for count in (5, 6, 7, 5, 6)]
    outcomes, engine = run(RerankerGraph(), requests, on_gpu)
    assert engine.shapes == [(6, 16)]
    assert engine.candidates == [(6, 10, DIM)]
    assert [outcome[Tensor.PASSAGE_STATES].shape for outcome in outcomes] == [(1, n, DIM) for n in (5, 6, 7, 5, 6)]


def test_more_candidates_than_the_engine_takes_are_refused_alone() -> None:
    limits = EngineLimits(vocabulary_size=100, max_tokens=64, max_candidates=20)
    many = reranker_request([7] * 5, 21)
    (answered, refused), _ = run(RerankerGraph(), [GOOD, many], on_gpu, limits)
    assert Tensor.PASSAGE_STATES in answered
    with pytest.raises(InvalidInputError, match=r"CANDIDATES: too many \(limit 20, got 21\)"):
        raise refused


def bad(request: StepRequest, tensor: Tensor, value: np.ndarray) -> StepRequest:
    return StepRequest({**request.inputs, tensor: value})


GOOD = reranker_request([7, 8], 2)
ENCODABLE = encoder_request([3])
MORE_SLOTS_THAN_PLACES = StepRequest(
    {
        **GOOD.inputs,
        Tensor.PASSAGE_POSITIONS: np.full((1, 10), 5),
        Tensor.CANDIDATES: np.ones((1, 10, DIM), dtype=np.float16),
    }
)


@pytest.mark.parametrize(
    ("graph", "request_", "message"),
    [
        (EncoderGraph(), bad(ENCODABLE, Tensor.INPUT_IDS, np.array([[1, 2, 100]])), "INPUT_IDS: not in the vocabulary"),
        (EncoderGraph(), bad(ENCODABLE, Tensor.INPUT_IDS, np.array([[1, 2, -1]])), r"\(limit 100, got -1\)"),
        (EncoderGraph(), bad(ENCODABLE, Tensor.ATTENTION_MASK, np.array([[0, 0, 0]])), "ATTENTION_MASK: not ones"),
        (EncoderGraph(), bad(ENCODABLE, Tensor.ATTENTION_MASK, np.array([[0, 1, 1]])), "ATTENTION_MASK: not ones"),
        (EncoderGraph(), bad(ENCODABLE, Tensor.ATTENTION_MASK, np.array([[2, 1, 0]])), "ATTENTION_MASK: not ones"),
        (EncoderGraph(), bad(ENCODABLE, Tensor.ATTENTION_MASK, np.array([[1, 1]])), "ATTENTION_MASK: shape"),
        (EncoderGraph(), encoder_request([65]), r"INPUT_IDS: too many tokens \(limit 64, got 65\)"),
        (EncoderGraph(), StepRequest(dict.fromkeys(ENCODABLE.inputs, np.empty((1, 0), np.int64))), "IDS: no tokens"),
        (RerankerGraph(), bad(GOOD, Tensor.PASSAGE_POSITIONS, np.array([[5, 99]])), r"POSITIONS: .*\(limit 8, got 99"),
        (RerankerGraph(), bad(GOOD, Tensor.PASSAGE_POSITIONS, np.array([[5]])), "PASSAGE_POSITIONS: shape"),
        (RerankerGraph(), reranker_request([7, 8], 1000), "INPUT_IDS: too many tokens"),
        (RerankerGraph(), MORE_SLOTS_THAN_PLACES, r"POSITIONS: more than the sequence has \(limit 9, got 10\)"),
        (RerankerGraph(), bad(GOOD, Tensor.LAST_POSITION, np.array([[-1]])), r"LAST_POSITION: .*\(limit 8, got -1\)"),
    ],
)
def test_what_would_leave_the_engines_memory_is_refused_alone(graph: Any, request_: StepRequest, message: str) -> None:
    good = ENCODABLE if isinstance(graph, EncoderGraph) else GOOD
    (first, refused, last), _ = run(graph, [good, request_, good])
    with pytest.raises(InvalidInputError, match=message):
        raise refused
    for name, values in first.items():
        np.testing.assert_array_equal(values, last[name])


def test_an_engine_that_fails_fails_the_requests_of_that_call_only() -> None:
    class Failing(EncoderArithmetic):
        def compute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if inputs[Tensor.INPUT_IDS].shape[1] > 32:
                raise RuntimeError("out of memory")
            return super().compute(inputs)

    step = EngineStep(Failing(), EncoderGraph(), LIMITS, on_cpu(EncoderGraph()), batch_rows=64)
    short, both, long = step.run([encoder_request([3]), encoder_request([3, 60]), encoder_request([60])])
    assert Tensor.EMBEDDING in short
    assert isinstance(both, RuntimeError)
    assert isinstance(long, RuntimeError)


def test_slots_that_share_a_place_are_nobody_elses_matter() -> None:
    crowded = StepRequest(
        {
            Tensor.INPUT_IDS: np.ones((1, 40), np.int64),
            Tensor.PASSAGE_POSITIONS: np.zeros((1, 40), np.int64),
            Tensor.LAST_POSITION: np.zeros((1, 1), np.int64),
            Tensor.CANDIDATES: np.ones((1, 40, DIM), np.float16),
        }
    )
    (alone,), _ = run(RerankerGraph(), [GOOD])
    (first, of_crowd, last), _ = run(RerankerGraph(), [GOOD, crowded, GOOD])
    assert of_crowd[Tensor.PASSAGE_STATES].shape == (1, 40, DIM)
    for name, values in alone.items():
        np.testing.assert_array_equal(values, first[name])
        np.testing.assert_array_equal(values, last[name])


def test_an_engine_that_computes_no_row_is_refused() -> None:
    with pytest.raises(CheckpointError, match="batch_rows is 0"):
        EngineStep(EncoderArithmetic(), EncoderGraph(), LIMITS, on_cpu(EncoderGraph()), batch_rows=0)
