"""``search`` by either route: each step of the plan as a request, or one request to Triton's ``search`` model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from resrank.client import inputs, plans, retrieval_calls, triton_calls
from resrank.client.aliases import Target, at_target
from resrank.client.calls import Call
from resrank.client.facts import FactsCache
from resrank.client.ranking import rank_candidates
from resrank.client.results import RankedPassage, SearchResult
from resrank.client.triton_calls import Float32
from resrank.core.collection_names import DEFAULT_COLLECTION
from resrank.core.errors import InvalidInputError, ResRankError
from resrank.core.fail_open import FOR_RETRIEVAL, MODEL_FAILURES, Failure, OnFailure
from resrank.core.filter_text import parse_filter
from resrank.core.filter_words import shown_value
from resrank.core.filters import FIELD, AllOf, AnyOf, Comparison, Filter, Not
from resrank.core.fusion import Fusion
from resrank.core.names import Model
from resrank.core.search import SearchMode, SearchOptions, choice
from resrank.core.search_plan import (
    STAGES,
    AskReranker,
    EmbedQuery,
    Found,
    Retrieve,
    ScorePass,
    Step,
    Stopwatch,
    plan_search,
    reserve,
)
from resrank.core.truncation import Truncation

Route = Literal["client", "server"]
"""Who does the steps of a search: the client, asking Triton and the sidecar, or Triton's ``search`` model."""


def search_options(
    k: int,
    candidates: int,
    mode: str,
    fusion: str,
    rerank: bool,
    lexical_weight: float | None,
    on_failure: OnFailure,
    collection: str,
    condition: Filter | str | None,
    include_metadata: bool,
) -> SearchOptions:
    """What a caller asks for.

    Raises:
        InvalidInputError: A value is of the wrong type, unknown or out of its range.
    """
    return SearchOptions(
        inputs.whole_number("k", k),
        inputs.whole_number("candidates", candidates),
        choice("mode", SearchMode, mode),
        choice("fusion", Fusion, fusion),
        inputs.truth("rerank", rerank),
        lexical_weight,
        on_failure,
        collection,
        _filter(condition),
        inputs.truth("include_metadata", include_metadata),
    )


def _filter(given: Filter | str | None) -> Filter | None:
    if given is None or isinstance(given, Comparison | AllOf | AnyOf | Not):
        return given
    if isinstance(given, str):
        return parse_filter(given)
    raise InvalidInputError(
        FIELD, f'must be F("year") >= 2020 and the like, or its text, "year >= 2020": {shown_value(given)} is neither'
    )


def search(
    facts_of: Callable[[str], FactsCache],
    query: str,
    options: SearchOptions,
    *,
    truncate: bool | Truncation | None,
    route: Route,
    has_sidecar: bool,
) -> plans.Plan[SearchResult]:
    """Embeds the query, finds candidates and reranks them, whatever of that the search takes."""
    encoded_query, truncate = inputs.encode_query(query), inputs.truncation(truncate)
    if route not in get_args(Route):
        raise InvalidInputError("route", "unknown", limit=" or ".join(get_args(Route)), value=route)
    watch = Stopwatch()

    def at(facts: FactsCache, target: Target) -> plans.Plan[SearchResult]:
        there = replace(options, collection=target.collection)
        if route == "client":
            found = yield from _by_steps(facts, query, encoded_query, there, truncate, watch)
        else:
            found = yield from _by_server(facts, query, encoded_query, there, truncate, watch, has_sidecar=has_sidecar)
        return replace(found, collection=target.collection or DEFAULT_COLLECTION, triton=target.triton)

    return (yield from at_target(facts_of, options.collection, at, has_sidecar=has_sidecar))


def _by_server(
    facts: FactsCache,
    query: str,
    encoded_query: bytes,
    options: SearchOptions,
    truncate: bool | Truncation | None,
    watch: Stopwatch,
    *,
    has_sidecar: bool,
) -> plans.Plan[SearchResult]:
    """Asks Triton's ``search`` model."""
    plan = plans.one(triton_calls.search(encoded_query, options, truncate=truncate))
    if not (options.may_be_by_words_alone and has_sidecar):
        return _result_of_server(query, options, (yield from plan), watch)
    try:
        answer = yield from plans.leaving(FOR_RETRIEVAL, plan)
    except MODEL_FAILURES as error:  # nobody is left to ask but the sidecar
        words = replace(options, mode=SearchMode.LEXICAL, rerank=False)
        found = yield from _by_steps(facts, query, encoded_query, words, truncate, watch)
        return replace(found, failure=Failure.of(error))
    return _result_of_server(query, options, answer, watch)


def _by_steps(
    facts: FactsCache,
    query: str,
    encoded_query: bytes,
    options: SearchOptions,
    truncate: bool | Truncation | None,
    watch: Stopwatch,
) -> plans.Plan[SearchResult]:
    """Asks Triton and the sidecar for one step after the other."""
    plan = plan_search(query, options)
    try:
        steps = next(plan)
        while True:
            try:
                results = yield from _taken(facts, steps, options, encoded_query, truncate)
            except ResRankError as error:
                steps = plan.throw(error)
            else:
                steps = plan.send(results)
    except StopIteration as end:
        found: Found = end.value
    candidates = found.candidates
    ranked = rank_candidates(
        found.scores,
        np.arange(len(found.scores)),
        rerank_scores=found.rerank_scores,
        ids=candidates.ids,
        titles=candidates.titles,
        texts=candidates.texts,
        candidate_scores=candidates.scores,
        dense_scores=candidates.dense_scores,
        lexical_scores=candidates.lexical_scores,
        metadata=candidates.metadata if options.include_metadata else None,
    )
    timings = {**found.stage_ms, **watch.with_total()}
    reranked = options.rerank and found.failure is None
    return SearchResult(query, found.mode, reranked, ranked[: options.k], timings, found.failure)


def _taken(
    facts: FactsCache, steps: Sequence[Step], options: SearchOptions, query: bytes, truncate: bool | Truncation | None
) -> plans.Plan[list[Any]]:
    """Takes steps of a search that may be taken at the same time, which are of one kind."""
    kept = reserve(steps[0], options)
    if steps == (AskReranker(),):
        return [(yield from plans.leaving(kept, plans.served_reranker(facts)))]
    calls = [_call_of(step, query, truncate) for step in steps]
    return (yield from plans.leaving(kept, plans.together(calls)))


def _call_of(step: Step, query: bytes, truncate: bool | Truncation | None) -> Call[Any]:
    match step:
        case EmbedQuery():
            return triton_calls.embed(Model.EMBED_QUERY, [query], truncate=truncate)
        case Retrieve(request):
            return retrieval_calls.search(request)
        case ScorePass(candidates, rows, embedding):
            return triton_calls.rerank(query, candidates, embedding, truncate=truncate, row_in_list=rows.item)
    raise AssertionError(f"{step} is no call")


def _result_of_server(
    query: str, options: SearchOptions, answer: triton_calls.FoundPassages, watch: Stopwatch
) -> SearchResult:
    def number(column: Float32, place: int) -> float | None:
        value = float(column[place])
        return None if math.isnan(value) else value

    passages = (
        RankedPassage(
            rank=place + 1,
            index=int(answer.candidate_ranks[place]) - 1,
            score=float(answer.scores[place]),
            id=answer.ids[place],
            title=answer.titles[place],
            text=answer.texts[place],
            candidate_rank=int(answer.candidate_ranks[place]),
            candidate_score=float(answer.candidate_scores[place]),
            dense_score=number(answer.dense_scores, place),
            lexical_score=number(answer.lexical_scores, place),
            rerank_score=number(answer.rerank_scores, place),
            metadata=None if answer.metadata is None else answer.metadata[place],
        )
        for place in range(len(answer.ids))
    )
    stages = zip(STAGES, map(float, answer.stage_ms), strict=True)
    timings = {stage: took_ms for stage, took_ms in stages if took_ms > 0}
    mode = options.mode if "embed_query" in timings else SearchMode.LEXICAL  # where the encoder failed
    reranked = options.rerank and answer.failure is None
    timings |= watch.with_total()
    return SearchResult(query, mode, reranked, tuple(passages), timings, answer.failure)
