"""``search`` asks the encoder, the sidecar and the reranker, each for what it needs, and puts the answer together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from resrank.core.errors import InvalidInputError, QueueFullError, ResRankError, RetrievalError
from resrank.core.filters import F
from resrank.core.fusion import CosineMap
from resrank.core.names import Model, Tensor
from resrank.core.search_plan import ServedReranker
from resrank.core.sidecar.filter_messages import read_filter
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.serving.near_steps import NearSteps
from resrank.serving.rerank_chain import RerankChain
from resrank.serving.search import BLOCKS_IN_FLIGHT, SearchStep
from resrank.serving.step import Arrays, StepRequest

ENCODER = "e" * 64
MAX_PASSAGES = 4
WEIGHT = 0.5
MAP = CosineMap(2.0, 0.25, 0.125)
EMBEDDED = ServedReranker(ENCODER, MAX_PASSAGES, WEIGHT, MAP, takes_embedding=True)


class Models:
    """A candidate's score is its first component, less a hundredth for each place in its pass."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.asked: list[Model] = []
        self.passes: list[int] = []
        self.embeddings: list[np.ndarray] = []
        self.under_way = self.most_under_way = 0

    async def infer(self, model: Model, inputs: Arrays, output: Tensor, caller: StepRequest) -> np.ndarray:
        self.asked.append(model)
        if model is Model.EMBED_QUERY:
            assert output is Tensor.EMBEDDING
            return np.array([[0.5, 2.0]], np.float32)
        candidates = inputs[Tensor.CANDIDATES]
        assert candidates.dtype == np.float16
        if model is Model.RERANK_EMBEDDED:
            self.embeddings.append(inputs[Tensor.QUERY_EMBEDDING])
        self.passes.append(candidates.shape[1])
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        if self.failure is not None:
            raise self.failure
        return candidates[:, :, 0].astype(np.float32) - 0.01 * np.arange(candidates.shape[1], dtype=np.float32)

    async def infer_outputs(
        self, model: Model, inputs: Arrays, outputs: Sequence[Tensor], caller: StepRequest
    ) -> dict[Tensor, np.ndarray]:
        (output,) = outputs
        return {output: await self.infer(model, inputs, output, caller)}


class Index:
    """Passage i has the vector (i mod 7, 1), and where words are searched for the BM25 i mod 3 of at most 4."""

    def __init__(self, size: int, encoder: str = ENCODER, *, turned: bool = False) -> None:
        self.size = size
        self.turned = turned
        self.encoder = encoder
        self.requests: list[tuple[pb.SearchRequest, float | None]] = []

    async def search(self, request: pb.SearchRequest, deadline: float | None) -> pb.SearchResponse:
        self.requests.append((request, deadline))
        places = list(range(min(request.k, self.size)))
        if self.turned:
            places.reverse()
        texts = [f"text {place}" for place in places] if request.include_texts else []
        vectors = np.array([[place % 7, 1] for place in places], "<f2")
        return pb.SearchResponse(
            ids=[f"p{place}" for place in places],
            scores=[1 - place / 1000 for place in places],
            titles=[text.upper() for text in texts],
            texts=texts,
            embeddings=vectors.tobytes() if request.include_embeddings else b"",
            dimension=2 if self.size else 0,
            collection="default",
            encoder_sha256=self.encoder if self.size else "",
            dense_scores=[1 - place / 500 for place in places] if request.embedding else [],
            lexical_scores=[place % 3 for place in places] if request.text else [],
            max_lexical_score=4 if request.text else 0,
            metadata=[pb.Metadata(values={"place": pb.Value(number=place)}) for place in places]
            if request.include_metadata
            else [],
        )


def search(
    index: Index, models: Models, parameters: Mapping[str, object] | None = None, query: bytes = b"q", **fields: Any
) -> Arrays:
    far = NearSteps(models.infer_outputs, {})
    step = SearchStep(far, index, ServedReranker(ENCODER, MAX_PASSAGES, WEIGHT, MAP))
    inputs = {Tensor.QUERY: np.array([[query]], dtype=np.object_)}
    return asyncio.run(step.answer(StepRequest(inputs, parameters=parameters or {}, **fields)))


def expected_order(count: int) -> list[int]:
    return sorted(range(count), key=lambda place: (-final(place), place))


def reranked(place: int) -> float:
    return place % 7 - 0.01 * (place % MAX_PASSAGES)


def final(place: int, weight: float = WEIGHT) -> float:
    return reranked(place) + weight * (place % 3) / 4


def test_candidates_are_reranked_in_blocks_and_the_best_come_first() -> None:
    models, index = Models(), Index(50)
    found = search(index, models, {"k": 5, "candidates": 30})
    best = expected_order(30)[:5]
    assert found[Tensor.IDS].tolist() == [[f"p{place}".encode() for place in best]]
    assert found[Tensor.TEXTS].tolist() == [[f"text {place}".encode() for place in best]]
    assert found[Tensor.TITLES].tolist() == [[f"TEXT {place}".encode() for place in best]]
    assert found[Tensor.CANDIDATE_RANKS].tolist() == [[place + 1 for place in best]]
    np.testing.assert_allclose(found[Tensor.CANDIDATE_SCORES], [[1 - place / 1000 for place in best]], atol=1e-6)
    np.testing.assert_allclose(found[Tensor.SCORES], [list(map(final, best))], atol=1e-6)
    np.testing.assert_allclose(found[Tensor.RERANK_SCORES], [list(map(reranked, best))], atol=1e-6)
    np.testing.assert_allclose(found[Tensor.DENSE_SCORES], [[1 - place / 500 for place in best]], atol=1e-6)
    assert found[Tensor.LEXICAL_SCORES].tolist() == [[place % 3 for place in best]]
    assert {name: array.dtype for name, array in found.items() if array.dtype != np.object_} == {
        Tensor.SCORES: np.float32,
        Tensor.CANDIDATE_RANKS: np.int32,
        Tensor.CANDIDATE_SCORES: np.float32,
        Tensor.DENSE_SCORES: np.float32,
        Tensor.LEXICAL_SCORES: np.float32,
        Tensor.RERANK_SCORES: np.float32,
        Tensor.STAGE_MS: np.float32,
    }
    assert models.passes == [4] * 7 + [2]
    assert models.most_under_way == BLOCKS_IN_FLIGHT
    assert (found[Tensor.STAGE_MS] > 0).all()


@pytest.mark.parametrize(
    ("mode", "rerank", "asked", "with_encoder"),
    [
        ("dense", True, [Model.EMBED_QUERY, Model.RERANK], True),
        ("hybrid", False, [Model.EMBED_QUERY], True),
        ("lexical", True, [Model.RERANK], True),
        ("lexical", False, [], False),
    ],
)
def test_nothing_is_asked_that_is_not_needed(mode: str, rerank: bool, asked: list[Model], with_encoder: bool) -> None:
    models, index = Models(), Index(3)
    found = search(index, models, {"k": 2, "mode": mode, "rerank": rerank}, deadline=12.5)
    assert models.asked == asked
    ((request, deadline),) = index.requests
    assert (request.k, request.include_embeddings, deadline) == (100, rerank, 12.5)
    assert request.encoder_sha256 == (ENCODER if with_encoder else "")
    assert bool(request.embedding) == (mode != "lexical")
    took = found[Tensor.STAGE_MS][0]
    assert [stage > 0 for stage in took] == [mode != "lexical", True, rerank]
    if not rerank:
        assert found[Tensor.IDS].tolist() == [[b"p0", b"p1"]]
        np.testing.assert_array_equal(found[Tensor.SCORES], found[Tensor.CANDIDATE_SCORES])


def test_the_weight_goes_to_retrieval_and_into_the_final_order() -> None:
    index = Index(6)
    search(index, Models())
    request, _ = index.requests[0]
    assert (request.fusion, request.lexical_weight) == (pb.FUSION_WEIGHTED, WEIGHT)
    assert (request.cosine_map.slope, request.cosine_map.center, request.cosine_map.offset) == (2.0, 0.25, 0.125)
    found = search(index, Models(), {"lexical_weight": 8.0, "k": 6, "candidates": 6})
    assert index.requests[1][0].lexical_weight == 8
    np.testing.assert_allclose(found[Tensor.SCORES], [sorted((final(p, 8.0) for p in range(6)), reverse=True)])
    found = search(index, Models(), {"fusion": "rrf", "lexical_weight": 0})
    assert index.requests[2][0].fusion == pb.FUSION_RRF
    np.testing.assert_array_equal(found[Tensor.SCORES], found[Tensor.RERANK_SCORES])


def test_scores_that_a_search_does_not_take_are_not_numbers() -> None:
    found = search(Index(3), Models(), {"mode": "dense"})
    assert np.isnan(found[Tensor.LEXICAL_SCORES]).all()
    np.testing.assert_array_equal(found[Tensor.SCORES], found[Tensor.RERANK_SCORES])
    found = search(Index(3), Models(), {"mode": "lexical", "rerank": False})
    assert np.isnan(found[Tensor.DENSE_SCORES]).all()
    assert np.isnan(found[Tensor.RERANK_SCORES]).all()


@pytest.mark.parametrize("mode", ["hybrid", "lexical"])
def test_lists_longer_than_a_pass_are_put_into_canonical_order_before_they_are_cut(mode: str) -> None:
    """Where passes read relations; then neither the blocks nor the scores hang on the order that retrieval found."""
    found = []
    for turned in (False, True):
        models, index = Models(), Index(10, turned=turned)
        step = SearchStep(
            NearSteps(models.infer_outputs, {}), index, ServedReranker(ENCODER, MAX_PASSAGES, 0.0, MAP, relational=True)
        )
        inputs = {Tensor.QUERY: np.array([[b"q"]], dtype=np.object_)}
        request = StepRequest(inputs, parameters={"k": 10, "candidates": 10, "mode": mode})
        outputs = asyncio.run(step.answer(request))
        ids, scores = outputs[Tensor.IDS][0].tolist(), outputs[Tensor.SCORES][0].tolist()
        found.append(dict(zip(ids, scores, strict=True)))
        assert models.passes == [4, 4, 2]
        assert models.asked.count(Model.EMBED_QUERY) == 1
    query = np.array([0.5, 2.0])
    vectors = {place: np.array([place % 7, 1.0]) for place in range(10)}
    cosines = {place: vector @ query / np.linalg.norm(vector) for place, vector in vectors.items()}
    ranks = {place: rank for rank, place in enumerate(sorted(range(10), key=lambda place: (-cosines[place], place)))}
    for place in range(7, 10):  # of the same vector as seven before it
        ranks[place] = ranks[place - 7]
    for mine in found:
        assert mine == {f"p{p}".encode(): pytest.approx(p % 7 - 0.01 * (ranks[p] % 4), abs=1e-6) for p in range(10)}


CHAIN = """[
    {"model": "rerank_prompt", "inputs": {"QUERY": "QUERY", "CANDIDATES": "CANDIDATES"},
     "outputs": {"INPUT_IDS": "IDS", "CANDIDATES": "CHECKED"}},
    {"model": "reranker", "inputs": {"INPUT_IDS": "IDS", "CANDIDATES": "CHECKED"},
     "outputs": {"PASSAGE_STATES": "PASSAGE_STATES"}},
    {"model": "residual_scoring", "inputs": {"PASSAGE_STATES": "PASSAGE_STATES", "QUERY_EMBEDDING": "QUERY_EMBEDDING"},
     "outputs": {"SCORES": "SCORES"}}
]"""


@pytest.mark.parametrize(
    ("mode", "count", "encodings", "passes"), [("dense", 6, 1, 2), ("lexical", 6, 1, 2), ("lexical", 4, 0, 0)]
)
def test_with_the_querys_vector_at_hand_the_query_is_not_encoded_again(
    mode: str, count: int, encodings: int, passes: int
) -> None:
    models, chained = Models(), []

    async def infer_outputs(
        model: Model, inputs: Arrays, outputs: Sequence[Tensor], caller: StepRequest
    ) -> dict[Tensor, np.ndarray]:
        chained.append(model)
        if model is Model.RERANK_PROMPT:
            return {Tensor.INPUT_IDS: np.array([[7]]), Tensor.CANDIDATES: inputs[Tensor.CANDIDATES]}
        if model is Model.RERANKER:
            assert inputs[Tensor.INPUT_IDS].tolist() == [[7]]
            return {Tensor.PASSAGE_STATES: inputs[Tensor.CANDIDATES].astype(np.float32)}
        return {Tensor.SCORES: inputs[Tensor.PASSAGE_STATES] @ inputs[Tensor.QUERY_EMBEDDING][0]}

    chain = RerankChain.read(infer_outputs, {"rerank_chain": CHAIN})
    far = NearSteps(models.infer_outputs, {})
    step = SearchStep(far, Index(count), EMBEDDED, chain)
    inputs = {Tensor.QUERY: np.array([[b"q"]], dtype=np.object_)}
    parameters = {"k": 6, "candidates": 6, "mode": mode, "lexical_weight": 0.0}
    found = asyncio.run(step.answer(StepRequest(inputs, parameters=parameters)))
    assert models.asked.count(Model.EMBED_QUERY) == encodings
    assert chained.count(Model.RERANKER) == passes
    if passes:
        # Passage i has the vector (i, 1), the query (0.5, 2).
        assert found[Tensor.SCORES].tolist() == [[4.5, 4.0, 3.5, 3.0, 2.5, 2.0]]
        assert Model.RERANK not in models.asked
    else:
        assert models.asked == [Model.RERANK], "which encodes the query behind its queue"
    assert RerankChain.read(infer_outputs, {}) is None


def test_without_steps_at_hand_the_querys_vector_goes_to_the_model_that_takes_it() -> None:
    models = Models()
    step = SearchStep(NearSteps(models.infer_outputs, {}), Index(6), EMBEDDED)
    inputs = {Tensor.QUERY: np.array([[b"q"]], dtype=np.object_)}
    asyncio.run(step.answer(StepRequest(inputs, parameters={"k": 6, "candidates": 6, "mode": "dense"})))
    assert models.asked == [Model.EMBED_QUERY, Model.RERANK_EMBEDDED, Model.RERANK_EMBEDDED]
    assert [embedding.tolist() for embedding in models.embeddings] == [[[0.5, 2.0]]] * 2


def test_texts_are_fetched_only_for_those_who_want_them() -> None:
    index = Index(3)
    found = search(index, Models(), wanted=("IDS", "SCORES"))
    assert not index.requests[0][0].include_texts
    assert Tensor.TEXTS not in found
    search(index, Models(), wanted=("IDS", "TITLES"))
    assert index.requests[1][0].include_texts


def test_a_filter_goes_to_retrieval_and_metadata_comes_back_with_the_best() -> None:
    index = Index(6)
    parameters = {"k": 2, "candidates": 6, "filter": "place in (1, 2) or a exists", "include_metadata": True}
    found = search(index, Models(), parameters)
    asked, _ = index.requests[0]
    assert read_filter(asked.filter) == F("place").is_in(1, 2) | F("a").exists()
    best = expected_order(6)[:2]
    assert [json.loads(each) for each in found[Tensor.METADATA][0]] == [{"place": float(place)} for place in best]
    assert Tensor.METADATA not in search(index, Models(), {"k": 2})
    assert not index.requests[1][0].HasField("filter")


def test_an_empty_index_is_an_empty_answer() -> None:
    models = Models()
    found = search(Index(0), models)
    assert {array.shape for name, array in found.items() if name not in (Tensor.STAGE_MS, Tensor.FAILURE)} == {(1, 0)}
    assert models.asked == [Model.EMBED_QUERY]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"k": 0}, "k: too small (limit 1, got 0)"),
        ({"k": 11, "candidates": 10}, "k: more results than candidates (limit 10, got 11)"),
        ({"candidates": 1001}, "candidates: too large (limit 1000, got 1001)"),
        ({"k": True}, "k: must be a request parameter that is a whole number, not true"),
        ({"candidates": "100"}, 'candidates: must be a request parameter that is a whole number, not "100"'),
        ({"rerank": 1}, "rerank: must be a request parameter that is true or false, not 1"),
        ({"lexical_weight": 10.5}, "lexical_weight: out of range (limit 0 to 10, got 10.5)"),
        ({"lexical_weight": "1"}, "lexical_weight: must be a number, not str"),
        ({"fusion": "sum"}, "fusion: unknown (limit weighted or rrf, got sum)"),
        ({"mode": "fuzzy"}, "mode: unknown (limit hybrid or dense or lexical, got fuzzy)"),
        ({"filter": "year >"}, "filter: column 7: expected a value, found the end"),
        ({"filter": ""}, "filter: empty or only whitespace"),
        ({"filter": 3}, "filter: must be a request parameter that is a string, not 3"),
        ({"include_metadata": "yes"}, 'include_metadata: must be a request parameter that is true or false, not "yes"'),
    ],
)
def test_bad_parameters_are_named_before_anything_is_asked(parameters: dict[str, object], message: str) -> None:
    models, index = Models(), Index(3)
    with pytest.raises(InvalidInputError) as caught:
        search(index, models, parameters)
    assert str(caught.value) == message
    assert models.asked == index.requests == []


def test_a_query_without_meaning_is_refused_and_foreign_parameters_are_left_alone() -> None:
    with pytest.raises(InvalidInputError, match="QUERY: empty or only whitespace"):
        search(Index(3), Models(), query=b" ")
    assert search(Index(3), Models(), {"traceparent": "00-1-2-01"})[Tensor.IDS].shape == (1, 3)


def test_an_index_of_another_encoder_is_refused() -> None:
    with pytest.raises(RetrievalError, match="belongs to encoder " + "f" * 64):
        search(Index(3, "f" * 64), Models())


def test_after_a_failed_pass_no_more_are_sent() -> None:
    models = Models(QueueFullError("Exceeds maximum queue size"))
    with pytest.raises(ResRankError, match="Exceeds maximum"):
        search(Index(50), models, {"candidates": 50})
    assert len(models.passes) == BLOCKS_IN_FLIGHT
