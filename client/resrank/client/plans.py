"""The steps of each method, apart from how requests are sent.

A plan is a generator: it yields the calls that may run at the same time, gets their results back in order (or their
first error thrown in), and returns the method's result. The sync and the asyncio client each have one small loop that
drives any plan, so no step, check or merge exists twice.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from resrank.client import inputs, retrieval_calls, triton_calls
from resrank.client.calls import Call
from resrank.client.facts import FactsCache
from resrank.client.ranking import rank_candidates
from resrank.client.results import HealthReport, RerankResult, RetrievalHealth
from resrank.client.triton_calls import Float32, ModelFacts
from resrank.core.blocks import plan_blocks
from resrank.core.errors import InvalidInputError, ResRankError
from resrank.core.fusion import (
    check_lexical_scores,
    check_lexical_weight,
    joint_scores,
    read_cosine_map,
    read_lexical_weight,
)
from resrank.core.limits import MAX_PASSAGE_BYTES, MAX_QUERY_BYTES, MAX_TEXT_PASSAGES
from resrank.core.names import Model, Parameter, Tensor
from resrank.core.scoring import ranking
from resrank.core.search_plan import ServedReranker, Stopwatch
from resrank.core.sidecar.searching import encoder_mismatch

T = TypeVar("T")
Plan = Generator[Sequence[Call[Any]], list[Any], T]
Rows = slice | NDArray[np.int64]

_CALLED_MODELS = (
    *(Model.RERANK, Model.RERANK_TEXT, Model.SEARCH),
    *(Model.EMBED_QUERY, Model.EMBED_PASSAGE, Model.EMBED_BULK),
)


def embed(facts: FactsCache, model: Model, texts: Sequence[str], *, truncate: bool) -> Plan[Float32]:
    """Embeds any number of texts in requests of at most the model's batch size; FP32 [n, d]."""
    truncate = inputs.truth("truncate", truncate)
    # Named as the models name them: a query is QUERY wherever it is given.
    if model is Model.EMBED_QUERY:
        encoded = inputs.encode_texts(Tensor.QUERY, texts, MAX_QUERY_BYTES)
    else:
        encoded = inputs.encode_texts(Tensor.TEXT, texts, MAX_PASSAGE_BYTES)
    size = (yield from model_facts(facts, model)).max_batch_size
    parts = yield from together(
        [
            triton_calls.embed(model, encoded[block], truncate=truncate, first_row=block.start)
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
    truncate: bool,
    second_pass: bool,
) -> Plan[RerankResult]:
    """Reranks embeddings or texts."""
    encoded_query = inputs.encode_query(query)
    truncate, second_pass = inputs.truth("truncate", truncate), inputs.truth("second_pass", second_pass)
    if lexical_weight is not None:
        check_lexical_weight(lexical_weight)
        if lexical_scores is None:
            raise InvalidInputError("lexical_weight", "weighs lexical_scores, but there are none")
    watch = Stopwatch()
    if candidates is not None and passages is None:
        vectors = inputs.half_precision(candidates)
        lexical = None if lexical_scores is None else check_lexical_scores(lexical_scores, len(vectors))
        scorer = yield from _embeddings_scorer(facts, encoded_query, vectors, truncate)
    elif passages is not None and candidates is None:
        texts = inputs.encode_texts(Tensor.PASSAGES, passages, MAX_PASSAGE_BYTES)
        lexical = None if lexical_scores is None else check_lexical_scores(lexical_scores, len(texts))
        scorer = yield from _texts_scorer(facts, encoded_query, texts, truncate)
    else:
        raise InvalidInputError("candidates", "give either candidates (embeddings) or passages (texts), one of them")
    if lexical is not None and lexical_weight is None:
        lexical_weight = read_lexical_weight((yield from model_facts(facts, Model.RERANK)).parameters)

    def final(scores: Float32, indices: NDArray[np.int64]) -> Float32:
        if lexical is None or lexical_weight is None:
            return scores
        return joint_scores(scores, lexical[indices], float(lexical.max()), lexical_weight)

    scores, indices = yield from _passes(scorer, final, second_pass, watch)
    ranked = rank_candidates(
        final(scores, indices),
        indices,
        rerank_scores=scores,
        texts=None if passages is None else list(passages),
        lexical_scores=lexical,
    )
    return RerankResult(ranked, watch.with_total())


def served_reranker(facts: FactsCache) -> Plan[ServedReranker]:
    """What the config of ``rerank`` says to a search."""
    model = yield from model_facts(facts, Model.RERANK)
    return ServedReranker(
        encoder_sha256=model.text(Parameter.ENCODER_SHA256),
        max_passages=model.positive(Parameter.MAX_PASSAGES),
        lexical_weight=read_lexical_weight(model.parameters),
        cosine_map=read_cosine_map(model.parameters),
    )


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
        problems += [f"model '{name}' is not ready" for name, is_ready in models.items() if not is_ready]
        if not ready and not problems:
            problems.append("Triton is not ready")
        if models[Model.RERANK]:
            try:
                facts.clear()  # a report is about now
                encoder = yield from encoder_sha256(facts)
            except ResRankError as error:
                problems.append(str(error))
    retrieval: RetrievalHealth | None = None
    if with_retrieval:
        retrieval = yield from ask(retrieval_calls.describe())
        index_encoder = None if retrieval is None else retrieval.encoder_sha256
        if encoder is not None and index_encoder is not None and index_encoder != encoder:
            problems.append(encoder_mismatch(index_encoder, encoder))
    return HealthReport(live, bool(ready), models, encoder, retrieval, tuple(problems))


@dataclass(frozen=True)
class _Scorer:
    """A list of candidates as a reranker takes it.

    Attributes:
        one_pass: Scores the candidates at some places, given where each of them stands in the caller's list.
        count: Candidates.
        size: Candidates in one pass.
    """

    one_pass: Callable[[Rows, Callable[[int], int]], Call[Float32]]
    count: int
    size: int


def _embeddings_scorer(facts: FactsCache, query: bytes, candidates: inputs.Float16, truncate: bool) -> Plan[_Scorer]:
    model = yield from model_facts(facts, Model.RERANK)
    inputs.check_dimension(candidates, model.positive(Parameter.EMBEDDING_DIM))

    def one_pass(rows: Rows, row_in_list: Callable[[int], int]) -> Call[Float32]:
        return triton_calls.rerank(query, candidates[rows], truncate=truncate, row_in_list=row_in_list)

    return _Scorer(one_pass, len(candidates), model.positive(Parameter.MAX_PASSAGES))


def _texts_scorer(facts: FactsCache, query: bytes, passages: Sequence[bytes], truncate: bool) -> Plan[_Scorer]:
    model = yield from model_facts(facts, Model.RERANK)

    def one_pass(rows: Rows, row_in_list: Callable[[int], int]) -> Call[Float32]:
        chosen = passages[rows] if isinstance(rows, slice) else [passages[row] for row in rows]
        return triton_calls.rerank_text(query, chosen, truncate=truncate, row_in_list=row_in_list)

    return _Scorer(one_pass, len(passages), min(model.positive(Parameter.MAX_PASSAGES), MAX_TEXT_PASSAGES))


def _passes(
    scorer: _Scorer,
    final: Callable[[Float32, NDArray[np.int64]], Float32],
    second_pass: bool,
    watch: Stopwatch,
) -> Plan[tuple[Float32, NDArray[np.int64]]]:
    """Scores candidates in passes, and the best of them once more together if wanted.

    Args:
        scorer: Scores one pass.
        final: Makes final scores of the reranker's, given whose they are.
        second_pass: Whether that is wanted.
        watch: Told when a stage is over.

    Returns:
        FP32 [n], the reranker's scores, and INT64 [n], which candidates they are of, ascending.
    """
    blocks = plan_blocks(scorer.count, scorer.size)
    calls = [scorer.one_pass(block, partial(operator.add, block.start)) for block in blocks]
    scores = np.concatenate((yield from together(calls)))
    watch.lap("rerank")
    everyone = np.arange(scorer.count)
    if not second_pass or len(calls) == 1:
        return scores, everyone
    # In the order of the first pass, which for this pass is the retrieval order that a causal reranker expects.
    best = ranking(final(scores, everyone))[: scorer.size]
    rescored = yield from one(scorer.one_pass(best, lambda row: int(best[row])))
    watch.lap("second_pass")
    ascending = np.argsort(best)
    return rescored[ascending], best[ascending]


def one(call: Call[T]) -> Plan[T]:
    """Sends one request."""
    (result,) = yield (call,)
    return cast(T, result)


def together(calls: Sequence[Call[T]]) -> Plan[list[T]]:
    """Sends requests that may be under way at the same time."""
    results = yield calls
    return cast(list[T], results)
