"""The steps of a search, apart from who takes them: the client over gRPC, or Triton's ``search`` model beside it.

A plan is a generator: it yields the steps that may be taken at the same time, gets their results back in order, and
returns what the search found. So no step, order or merge exists twice.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from resrank.core.blocks import order_blocks
from resrank.core.errors import InvalidInputError
from resrank.core.fail_open import FOR_ANSWER, FOR_RETRIEVAL, MODEL_FAILURES, NOTHING, Failure, OnFailure, Reserve
from resrank.core.fusion import CosineMap, Float32, joint_scores, read_cosine_map, read_lexical_weight
from resrank.core.names import Parameter
from resrank.core.relations import CanonicalOrder, canonical_order
from resrank.core.scoring import ranking
from resrank.core.search import SearchMode, SearchOptions
from resrank.core.sidecar.searching import Candidates, read_candidates, search_request
from resrank.core.sidecar.v1 import retrieval_pb2

T = TypeVar("T")

STAGES = ("embed_query", "retrieve", "rerank")
"""What a search spends its time on, in this order."""


@dataclass(frozen=True)
class ServedReranker:
    """What a search has to know of the models that serve it, which is in the config of ``rerank``.

    Attributes:
        encoder_sha256: The encoder behind them, which the index must belong to.
        max_passages: Candidates in one pass.
        lexical_weight: The checkpoint's w.
        cosine_map: Its A.
        relational: Whether a pass puts its candidates into canonical order by itself, so that lists longer than one
            have to be in that order before they are cut.
        takes_embedding: Whether a pass can be given the query's vector, by the model ``rerank_embedded``.
    """

    encoder_sha256: str
    max_passages: int
    lexical_weight: float
    cosine_map: CosineMap
    relational: bool = False
    takes_embedding: bool = False

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> Self:
        """Reads the ``parameters`` of a config that ``resrank export`` wrote."""
        return cls(
            encoder_sha256=parameters[Parameter.ENCODER_SHA256],
            max_passages=int(parameters[Parameter.MAX_PASSAGES]),
            lexical_weight=read_lexical_weight(parameters),
            cosine_map=read_cosine_map(parameters),
            relational=parameters.get(Parameter.SLOT_CONTENT, "vector") != "vector",
            takes_embedding=parameters.get(Parameter.TAKES_EMBEDDING) == "true",
        )

    def sorts(self, count: int) -> bool:
        """Whether a list of so many candidates needs the query's vector, to be sorted before it is cut into passes."""
        return self.relational and count > self.max_passages

    def encodes_first(self, count: int) -> bool:
        """Whether the passes of a list of so many candidates need the query's vector, or are spared work by it."""
        return count > self.max_passages and (self.relational or self.takes_embedding)

    def cut(self, embedding: Float32 | None, candidates: NDArray[np.float16]) -> tuple[CanonicalOrder, Float32 | None]:
        """How a list, FP16 [n, d], is read when it is cut into passes, and the query's vector where passes take it."""
        order = CanonicalOrder.as_given(len(candidates))
        if embedding is not None and self.sorts(len(candidates)):
            order = canonical_order(embedding, candidates)
        return order, embedding if self.takes_embedding else None


@dataclass(frozen=True)
class AskReranker:
    """Results in :class:`ServedReranker`."""


@dataclass(frozen=True)
class EmbedQuery:
    """Results in the query's vector, FP32 [d]."""


@dataclass(frozen=True)
class Retrieve:
    """Results in the sidecar's answer, a ``SearchResponse``."""

    request: retrieval_pb2.SearchRequest


@dataclass(frozen=True)
class ScorePass:
    """Results in the reranker's scores of one pass, FP32 [N].

    Attributes:
        candidates: FP16 [N, d].
        rows: INT64 [N], where each of them stands in the list.
        embedding: FP32 [d], the query's, where it is at hand and the models take it.
    """

    candidates: NDArray[np.float16]
    rows: NDArray[np.int64]
    embedding: Float32 | None


Step: TypeAlias = AskReranker | EmbedQuery | Retrieve | ScorePass
SearchPlan: TypeAlias = Generator[Sequence[Step], list[Any], T]


def reserve(step: Step, options: SearchOptions) -> Reserve:
    """What of a search's time a step must leave over, since the search goes on without it where it fails.

    Args:
        step: The step.
        options: What is wanted.
    """
    match step:
        case AskReranker() | EmbedQuery() if options.may_be_by_words_alone:
            return FOR_RETRIEVAL
        case ScorePass() if options.on_failure is OnFailure.RETRIEVAL_ORDER:
            return FOR_ANSWER
    return NOTHING


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        candidates: In retrieval order.
        scores: FP32 [n], final, parallel to them.
        rerank_scores: FP32 [n], the reranker's; None where it was not asked, or failed.
        best: INT64 [k'], places among the candidates, best first, ties in retrieval order.
        stage_ms: Milliseconds of the stages that the search took to their end: ``embed_query``, ``retrieve``,
            ``rerank``.
        mode: How the candidates were found: not as it was asked for where the encoder failed.
        failure: What the search did without, by ``on_failure``; None where nothing failed.
    """

    candidates: Candidates
    scores: Float32
    rerank_scores: Float32 | None
    best: NDArray[np.int64]
    stage_ms: Mapping[str, float]
    mode: SearchMode
    failure: Failure | None


class Stopwatch:
    """Milliseconds of each stage, in the order in which they ended, and of the whole."""

    def __init__(self) -> None:
        self._start = self._lap = time.perf_counter()
        self.stage_ms: dict[str, float] = {}

    def begin(self) -> None:
        """Begins a stage now: what went before it is none."""
        self._lap = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Ends a stage that began when the one before it ended."""
        now = time.perf_counter()
        self.stage_ms[stage] = (now - self._lap) * 1e3
        self._lap = now

    def with_total(self) -> dict[str, float]:
        """All stages and ``total``."""
        return {**self.stage_ms, "total": (time.perf_counter() - self._start) * 1e3}


@dataclass(frozen=True)
class _Models:
    """What the models say of a search before candidates are looked for.

    Attributes:
        reranker: None where the search needs no model.
        embedding: FP32 [d], the query's; None where words are searched for alone.
    """

    reranker: ServedReranker | None = None
    embedding: Float32 | None = None


def plan_search(query: str, options: SearchOptions, *, include_texts: bool = True) -> SearchPlan[Found]:
    """Embeds the query, finds candidates and reranks them, whatever of that the search takes.

    With ``on_failure=retrieval_order`` a search whose reranker fails is over with retrieval, and one by vectors and
    words whose encoder fails finds by words. Without an encoder ``dense`` has no order, so there the error is raised.

    Args:
        query: The query's text, checked.
        options: What is wanted.
        include_texts: Whether titles and texts are wanted.

    Raises:
        RetrievalError: The index belongs to another encoder, or the sidecar's answer makes no sense.
        ResRankError: What a step raised.
    """
    watch = Stopwatch()
    models, mode, failure, lost = _Models(), options.mode, None, None
    try:
        models = yield from _asked_first(options, watch)
    except MODEL_FAILURES as error:
        if not options.may_be_by_words_alone:
            raise
        mode, failure, lost = SearchMode.LEXICAL, Failure.of(error), error
        watch.begin()
    reranker, embedding = models.reranker, models.embedding
    weight = options.lexical_weight
    if weight is None and reranker is not None:
        weight = reranker.lexical_weight
    encoder_sha256 = None if reranker is None else reranker.encoder_sha256
    rerank = options.rerank and failure is None
    request = search_request(
        query,
        embedding,
        mode=mode,
        k=options.candidates,
        encoder_sha256=encoder_sha256,
        include_texts=include_texts,
        include_embeddings=rerank,
        fusion=options.fusion,
        lexical_weight=weight,
        cosine_map=None if reranker is None else reranker.cosine_map,
        collection=options.collection,
        condition=options.filter,
        include_metadata=options.include_metadata,
    )
    try:
        response = yield from _one(Retrieve(request))
    except InvalidInputError as error:
        if lost is not None and error.field == "text":  # no word to search for: by vectors it could be answered
            raise lost from None
        raise
    found = read_candidates(response, request)
    watch.lap("retrieve")
    scores, rerank_scores = found.scores, None
    if found.embeddings is not None and reranker is not None and weight is not None:
        try:
            scores = rerank_scores = yield from _reranked(reranker, embedding, found.embeddings)
        except MODEL_FAILURES as error:
            if options.on_failure is OnFailure.ERROR:
                raise
            failure = Failure.of(error)
        else:
            if found.lexical_scores is not None:
                scores = joint_scores(rerank_scores, found.lexical_scores, found.max_lexical_score, weight)
            watch.lap("rerank")
    best = ranking(scores)[: options.k]
    return Found(found, scores, rerank_scores, best, watch.stage_ms, mode, failure)


def _asked_first(options: SearchOptions, watch: Stopwatch) -> SearchPlan[_Models]:
    # Words alone need no model, and no encoder to agree with: any index can be searched by them.
    if not (options.rerank or options.needs_embedding):
        return _Models()
    reranker = yield from _one(AskReranker())
    watch.begin()
    if not options.needs_embedding:
        return _Models(reranker)
    embedding = yield from _one(EmbedQuery())
    watch.lap("embed_query")
    return _Models(reranker, embedding)


def _reranked(
    reranker: ServedReranker, embedding: Float32 | None, candidates: NDArray[np.float16]
) -> SearchPlan[Float32]:
    """The reranker's scores, FP32 [n], of FP16 [n, d] candidates as they stand."""
    if embedding is None and reranker.encodes_first(len(candidates)):
        embedding = yield from _one(EmbedQuery())
    order, given = reranker.cut(embedding, candidates)
    blocks = order_blocks(order, reranker.max_passages)
    parts = yield [ScorePass(candidates[rows], rows, given) for rows in blocks]
    scores: Float32 = np.concatenate(parts)[order.places]
    return scores


def _one(step: Step) -> SearchPlan[Any]:
    (result,) = yield (step,)
    return result
