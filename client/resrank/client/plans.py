"""The steps of each method, apart from how requests are sent.

A plan is a generator: it yields the calls that may run at the same time, gets their results back in order (or their
first error thrown in), and returns the method's result. The sync and the asyncio client each have one small loop that
drives any plan, so no step, check or merge exists twice.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from resrank.client import inputs, retrieval_calls, triton_calls
from resrank.client.calls import Call, Server
from resrank.client.facts import FactsCache
from resrank.client.ranking import rank_candidates
from resrank.client.results import HealthReport, RerankResult, RetrievalHealth
from resrank.client.triton_calls import Float32, ModelFacts
from resrank.core.blocks import order_blocks, plan_blocks
from resrank.core.calibration import Calibration, read_calibration
from resrank.core.errors import InvalidInputError, ResRankError
from resrank.core.fail_open import FOR_ANSWER, MODEL_FAILURES, Failure, OnFailure, Reserve
from resrank.core.fusion import check_lexical_scores, check_lexical_weight, joint_scores
from resrank.core.limits import MAX_PASSAGE_BYTES, MAX_QUERY_BYTES, MAX_TEXT_PASSAGES
from resrank.core.names import Model, Parameter, Priority, Tensor
from resrank.core.relations import CanonicalOrder
from resrank.core.scoring import ranking
from resrank.core.search_plan import ServedReranker, Stopwatch
from resrank.core.sidecar.searching import encoder_mismatch
from resrank.core.truncation import Truncation

T = TypeVar("T")
Plan = Generator[Sequence[Call[Any]], list[Any], T]
Rows = NDArray[np.int64]

_CALLED_MODELS = (
    *(Model.RERANK, Model.RERANK_TEXT, Model.SEARCH),
    *(Model.EMBED_QUERY, Model.EMBED_PASSAGE, Model.EMBED_BULK),
)


def embed(
    facts: FactsCache,
    model: Model,
    texts: Sequence[str],
    *,
    truncate: bool | Truncation | None,
    read: list[int] | None,
) -> Plan[Float32]:
    """Embeds any number of texts in requests of at most the model's batch size; FP32 [n, d]."""
    truncate = inputs.truncation(truncate)
    # Named as the models name them: a query is QUERY wherever it is given.
    if model is Model.EMBED_QUERY:
        encoded = inputs.encode_texts(Tensor.QUERY, texts, MAX_QUERY_BYTES)
    else:
        encoded = inputs.encode_texts(Tensor.TEXT, texts, MAX_PASSAGE_BYTES)
    return (yield from _embed(facts, model, None, encoded, truncate, read=read))


def _embed(
    facts: FactsCache,
    model: Model,
    named: Tensor | None,
    encoded: Sequence[bytes],
    truncate: bool | Truncation | None,
    cut: set[int] | None = None,
    read: list[int] | None = None,
) -> Plan[Float32]:
    """Embeds texts in requests of at most the model's batch size; errors name them as the model does, or otherwise."""
    size = (yield from model_facts(facts, model)).max_batch_size
    parts = yield from together(
        [
            triton_calls.embed(
                model, encoded[block], truncate=truncate, first_row=block.start, named=named, cut=cut, read=read
            )
            for block in plan_blocks(len(encoded), size)
        ]
    )
    return np.concatenate(parts)


def rerank(
    facts: FactsCache,
    query: str,
    candidates: NDArray[Any] | None,
    passages: Sequence[str] | None,
    *,
    lexical_scores: Sequence[float] | NDArray[Any] | None,
    lexical_weight: float | None,
    truncate: bool | Truncation | None,
    second_pass: bool,
    on_failure: OnFailure,
) -> Plan[RerankResult]:
    """Reranks embeddings or texts, or with ``retrieval_order`` leaves them as they are where that fails."""
    encoded_query = inputs.encode_query(query)
    truncate, second_pass = inputs.truncation(truncate), inputs.truth("second_pass", second_pass)
    if lexical_weight is not None:
        check_lexical_weight(lexical_weight)
        if lexical_scores is None:
            raise InvalidInputError("lexical_weight", "weighs lexical_scores, but there are none")
    scorer_plan: Plan[Scorer]
    cut: set[int] = set()
    read: list[int] = []
    if candidates is not None and passages is None:
        vectors = inputs.half_precision(candidates)
        count = len(vectors)
        scorer_plan = embeddings_scorer(facts, encoded_query, vectors, truncate, read)
    elif passages is not None and candidates is None:
        texts = inputs.encode_texts(Tensor.PASSAGES, passages, MAX_PASSAGE_BYTES)
        count = len(texts)
        scorer_plan = _texts_scorer(facts, encoded_query, texts, truncate, cut, read)
    else:
        raise InvalidInputError("candidates", "give either candidates (embeddings) or passages (texts), one of them")
    lexical = None if lexical_scores is None else check_lexical_scores(lexical_scores, count)
    watch = Stopwatch()
    plan = _scored(facts, scorer_plan, lexical, lexical_weight, second_pass, watch)
    found = yield from or_as_given(plan, count, on_failure)
    ranked = rank_candidates(
        found.scores,
        found.indices,
        rerank_scores=found.rerank_scores,
        texts=None if passages is None else list(passages),
        lexical_scores=lexical,
    )
    return RerankResult(
        ranked,
        watch.with_total(),
        reranked=found.failure is None,
        failure=found.failure,
        truncated=tuple(sorted(cut)),
        tokens_read=sum(read),
    )


@dataclass(frozen=True)
class Scored:
    """What came of a list of candidates.

    Attributes:
        scores: FP32 [n], final.
        rerank_scores: FP32 [n], the reranker's; None where it failed.
        indices: INT64 [n], which candidates of the list they are of, ascending.
        failure: Why the list is as it was given; None where it was reranked.
    """

    scores: Float32
    rerank_scores: Float32 | None
    indices: Rows
    failure: Failure | None = None

    @classmethod
    def as_given(cls, count: int, failure: Failure) -> Self:
        """Of a list that could not be reranked: equal scores, whose order is the list's."""
        return cls(np.zeros(count, np.float32), None, np.arange(count), failure)


def or_as_given(plan: Plan[Scored], count: int, on_failure: OnFailure) -> Plan[Scored]:
    """What a plan makes of ``count`` candidates, or with ``retrieval_order`` their own order where models fail."""
    if on_failure is OnFailure.ERROR:
        return (yield from plan)
    try:
        return (yield from leaving(FOR_ANSWER, plan))
    except MODEL_FAILURES as error:
        return Scored.as_given(count, Failure.of(error))


def _scored(
    facts: FactsCache,
    scorer_plan: Plan[Scorer],
    lexical: Float32 | None,
    weight: float | None,
    second_pass: bool,
    watch: Stopwatch,
) -> Plan[Scored]:
    scorer = yield from scorer_plan
    if lexical is not None and weight is None:
        weight = (yield from served_reranker(facts)).lexical_weight

    def final(scores: Float32, indices: Rows) -> Float32:
        if lexical is None or weight is None:
            return scores
        return joint_scores(scores, lexical[indices], float(lexical.max()), weight)

    return (yield from in_passes(scorer, final, second_pass, watch))


def served_reranker(facts: FactsCache) -> Plan[ServedReranker]:
    """What the config of ``rerank`` says to a search."""
    model = yield from model_facts(facts, Model.RERANK)
    for needed in (Parameter.ENCODER_SHA256, Parameter.MAX_PASSAGES):
        model.text(needed)  # says what is missing where another program wrote the repository
    return ServedReranker.read(model.parameters)


def model_facts(facts: FactsCache, model: Model) -> Plan[ModelFacts]:
    """A model's config, asked for when it is not known or old."""
    known = facts.get(model)
    if known is None:
        known = yield from one(triton_calls.model_facts(model))
        facts.put(known)
    return known


def encoder_sha256(facts: FactsCache) -> Plan[str]:
    """The encoder that the ``rerank`` model's candidates must come from."""
    return (yield from model_facts(facts, Model.RERANK)).text(Parameter.ENCODER_SHA256)


def lexical_weight(facts: FactsCache) -> Plan[float]:
    """The checkpoint's w."""
    return (yield from served_reranker(facts)).lexical_weight


def calibration(facts: FactsCache) -> Plan[Calibration | None]:
    """What the checkpoint's scores mean; None where nobody fitted that."""
    return read_calibration((yield from model_facts(facts, Model.RERANK)).parameters)


def health(facts: FactsCache, *, with_retrieval: bool) -> Plan[HealthReport]:
    """Asks every server and model; what does not answer is reported, not raised."""
    problems: list[str] = []

    def ask(call: Call[T]) -> Plan[T | None]:
        try:
            return (yield from one(call))
        except ResRankError as error:
            problems.append(str(error))
            return None

    ready = yield from ask(triton_calls.server_ready())
    live = ready is not None
    models = {model.value: False for model in _CALLED_MODELS}
    encoder: str | None = None
    if live:
        for model in _CALLED_MODELS:
            models[model] = bool((yield from ask(triton_calls.model_ready(model))))
        if models[Model.RERANK]:
            try:
                yield from _renew_reranker(facts)  # a report is about now
                reranker = yield from served_reranker(facts)
                encoder = reranker.encoder_sha256
                if reranker.takes_embedding:
                    model = Model.RERANK_EMBEDDED
                    models[model] = bool((yield from ask(triton_calls.model_ready(model))))
            except ResRankError as error:
                problems.append(str(error))
        not_ready = [f"model '{name}' is not ready" for name, is_ready in models.items() if not is_ready]
        if not ready and not not_ready and not problems:
            problems.append("Triton is not ready")
        problems += not_ready
    retrieval: RetrievalHealth | None = None
    if with_retrieval:
        retrieval = yield from ask(retrieval_calls.describe())
        index_encoder = None if retrieval is None else retrieval.encoder_sha256
        if encoder is not None and index_encoder is not None and index_encoder != encoder:
            problems.append(encoder_mismatch(index_encoder, encoder))
    return HealthReport(live, bool(ready), models, encoder, retrieval, tuple(problems))


def _renew_reranker(facts: FactsCache) -> Plan[None]:
    """Reads the reranker's config again. Requests go on by what is known of the others, unless this one has changed."""
    now = yield from one(triton_calls.model_facts(Model.RERANK))
    if facts.get(Model.RERANK) not in (None, now):
        facts.clear()
    facts.put(now)


@dataclass(frozen=True)
class Scorer:
    """A list of candidates as a reranker takes it.

    Attributes:
        one_pass: Scores the candidates at some places of the caller's list, FP32 [n] of INT64 [n].
        order: How the list is read when it is cut into passes.
        size: Candidates in one pass.
    """

    one_pass: Callable[[Rows], Call[Float32]]
    order: CanonicalOrder
    size: int


def embeddings_scorer(
    facts: FactsCache,
    query: bytes,
    candidates: inputs.Float16,
    truncate: bool | Truncation | None,
    read: list[int],
) -> Plan[Scorer]:
    """Scores embeddings, FP16 [N, d]; ``read`` is told how many tokens each request had read."""
    reranker = yield from served_reranker(facts)
    model = yield from model_facts(facts, Model.RERANK)
    inputs.check_dimension(candidates, model.positive(Parameter.EMBEDDING_DIM))
    embedding: Float32 | None = None
    if reranker.encodes_first(len(candidates)):
        (embedding,) = yield from one(triton_calls.embed(Model.EMBED_QUERY, [query], truncate=truncate, read=read))
    order, given = reranker.cut(embedding, candidates)

    def one_pass(rows: Rows) -> Call[Float32]:
        return triton_calls.rerank(query, candidates[rows], given, truncate=truncate, row_in_list=rows.item, read=read)

    return Scorer(one_pass, order, reranker.max_passages)


def _texts_scorer(
    facts: FactsCache,
    query: bytes,
    passages: Sequence[bytes],
    truncate: bool | Truncation | None,
    cut: set[int],
    read: list[int],
) -> Plan[Scorer]:
    reranker = yield from served_reranker(facts)
    size = min(reranker.max_passages, MAX_TEXT_PASSAGES)
    if reranker.relational and len(passages) > size:
        # The order of the whole list is by the passages' vectors, and with them at hand no text need be sent again.
        vectors = yield from _embed(facts, Model.EMBED_PASSAGE, Tensor.PASSAGES, passages, truncate, cut, read)
        return (yield from embeddings_scorer(facts, query, vectors.astype("<f2"), truncate, read))

    def one_pass(rows: Rows) -> Call[Float32]:
        chosen = [passages[row] for row in rows.tolist()]
        return triton_calls.rerank_text(query, chosen, truncate=truncate, row_in_list=rows.item, cut=cut, read=read)

    return Scorer(one_pass, CanonicalOrder.as_given(len(passages)), size)


def in_passes(
    scorer: Scorer,
    final: Callable[[Float32, Rows], Float32],
    second_pass: bool,
    watch: Stopwatch,
) -> Plan[Scored]:
    """Scores candidates in passes, and the best of them once more together if wanted.

    Args:
        scorer: Scores one pass.
        final: Makes final scores of the reranker's, given whose they are.
        second_pass: Whether that is wanted.
        watch: Told when a stage is over.
    """
    calls = [scorer.one_pass(rows) for rows in order_blocks(scorer.order, scorer.size)]
    scores = np.concatenate((yield from together(calls)))[scorer.order.places]
    watch.lap("rerank")
    everyone = np.arange(len(scores))
    if not second_pass or len(calls) == 1:
        return Scored(final(scores, everyone), scores, everyone)
    # In the order of the first pass, which for this pass is the retrieval order that a causal reranker expects.
    best = ranking(final(scores, everyone))[: scorer.size]
    rescored = yield from one(scorer.one_pass(best))
    watch.lap("second_pass")
    ascending = np.argsort(best)
    scores, indices = rescored[ascending], best[ascending]
    return Scored(final(scores, indices), scores, indices)


def one(call: Call[T]) -> Plan[T]:
    """Sends one request."""
    (result,) = yield (call,)
    return cast(T, result)


def together(calls: Sequence[Call[T]]) -> Plan[list[T]]:
    """Sends requests that may be under way at the same time."""
    results = yield calls
    return cast(list[T], results)


def leaving(reserve: Reserve, plan: Plan[T]) -> Plan[T]:
    """The plan with requests that leave over some of the call's time."""
    return (yield from _changed(lambda call: replace(call, reserve=reserve), plan))


def sent_to(triton: str, plan: Plan[T]) -> Plan[T]:
    """The plan with its requests to Triton sent to another one than the client's own; to that when it is empty."""
    if not triton:
        return (yield from plan)

    def change(call: Call[Any]) -> Call[Any]:
        return replace(call, address=triton) if call.server is Server.TRITON else call

    return (yield from _changed(change, plan))


def prioritized(priority: Priority | None, plan: Plan[T]) -> Plan[T]:
    """The plan with requests to Triton at a priority level; at the usual one when None.

    Raises:
        InvalidInputError: There is no such level.
    """
    if priority is None:
        return (yield from plan)
    try:
        level = int(Priority(priority))
    except ValueError:
        raise InvalidInputError("priority", "unknown", limit="1 (interactive) or 2 (bulk)", value=priority) from None

    def change(call: Call[Any]) -> Call[Any]:
        def build(remaining_s: float) -> Any:
            request = call.build(remaining_s)
            request.parameters["priority"].int64_param = level
            return request

        return replace(call, build=build) if call.method == "ModelInfer" else call

    return (yield from _changed(change, plan))


def _changed(change: Callable[[Call[Any]], Call[Any]], plan: Plan[T]) -> Plan[T]:
    """The plan with other requests in place of its own."""
    try:
        calls = next(plan)
        while True:
            try:
                results = yield [change(call) for call in calls]
            except ResRankError as error:
                calls = plan.throw(error)
            else:
                calls = plan.send(results)
    except StopIteration as end:
        return cast(T, end.value)
