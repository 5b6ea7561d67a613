"""The steps of each method, apart from how requests are sent.

A plan is a generator: it yields the calls that may run at the same time, gets their results back in order (or their
first error thrown in), and returns the method's result. The sync and the asyncio client each have one small loop that
drives any plan, so no step, check or merge exists twice.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

from resrank.client import inputs, retrieval_calls, triton_calls
from resrank.client.calls import Call
from resrank.client.facts import FactsCache
from resrank.client.ranking import rank_candidates
from resrank.client.results import HealthReport, RankedPassage, RerankResult, RetrievalHealth, SearchResult
from resrank.client.triton_calls import Float32, ModelFacts
from resrank.core.blocks import plan_blocks
from resrank.core.errors import InvalidInputError, ResRankError
from resrank.core.limits import MAX_PASSAGE_BYTES, MAX_QUERY_BYTES, MAX_TEXT_PASSAGES
from resrank.core.names import Model, Parameter, Tensor
from resrank.core.scoring import ranking
from resrank.core.sidecar.searching import Mode, check_mode, check_sizes, encoder_mismatch

T = TypeVar("T")
Plan = Generator[Sequence[Call[Any]], list[Any], T]
Rows = slice | NDArray[np.int64]

Route = Literal["client", "server"]
"""Who does the steps of a search: the client, asking Triton and the sidecar, or Triton's ``search`` model."""

_CALLED_MODELS = (Model.RERANK, Model.RERANK_TEXT, Model.EMBED_QUERY, Model.EMBED_PASSAGE)


class Stopwatch:
    """Milliseconds of each stage, in the order in which they ended, and of the whole."""

    def __init__(self) -> None:
        self._start = self._lap = time.perf_counter()
        self.timings: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """Ends a stage that began when the one before it ended."""
        now = time.perf_counter()
        self.timings[stage] = (now - self._lap) * 1e3
        self._lap = now

    def finish(self) -> dict[str, float]:
        """All stages and ``total``."""
        return {**self.timings, "total": (time.perf_counter() - self._start) * 1e3}


def embed(facts: FactsCache, model: Model, texts: Sequence[str], *, truncate: bool) -> Plan[Float32]:
    """Embeds any number of texts in requests of at most the model's batch size; FP32 [n, d]."""
    truncate = inputs.truth("truncate", truncate)
    # Named as the models name them: a query is QUERY wherever it is given.
    if model is Model.EMBED_QUERY:
        encoded = inputs.encode_texts(Tensor.QUERY, texts, MAX_QUERY_BYTES)
    else:
        encoded = inputs.encode_texts(Tensor.TEXT, texts, MAX_PASSAGE_BYTES)
    size = (yield from model_facts(facts, model)).max_batch_size
    parts = yield from _together(
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
    truncate: bool,
    second_pass: bool,
) -> Plan[RerankResult]:
    """Reranks embeddings or texts."""
    encoded_query = inputs.encode_query(query)
    truncate, second_pass = inputs.truth("truncate", truncate), inputs.truth("second_pass", second_pass)
    watch = Stopwatch()
    if candidates is not None and passages is None:
        scores, indices = yield from _rerank_embeddings(
            facts, encoded_query, inputs.half_precision(candidates), truncate, second_pass, watch
        )
    elif passages is not None and candidates is None:
        scores, indices = yield from _rerank_texts(
            facts,
            encoded_query,
            inputs.encode_texts(Tensor.PASSAGES, passages, MAX_PASSAGE_BYTES),
            truncate,
            second_pass,
            watch,
        )
    else:
        raise InvalidInputError("candidates", "give either candidates (embeddings) or passages (texts), one of them")
    return RerankResult(
        rank_candidates(scores, indices, texts=None if passages is None else list(passages)), watch.finish()
    )


def search(
    facts: FactsCache,
    query: str,
    *,
    k: int,
    candidates: int,
    mode: Mode,
    rerank: bool,
    truncate: bool,
    route: Route,
) -> Plan[SearchResult]:
    """Embeds the query, finds candidates and reranks them, whatever of that the search takes."""
    encoded_query = inputs.encode_query(query)
    k, candidates = inputs.whole_number("k", k), inputs.whole_number("candidates", candidates)
    rerank, truncate = inputs.truth("rerank", rerank), inputs.truth("truncate", truncate)
    check_sizes(k, candidates)
    check_mode(mode)
    if route not in get_args(Route):
        raise InvalidInputError("route", "unknown", limit=" or ".join(get_args(Route)), value=route)
    if route == "server":
        watch = Stopwatch()
        call = triton_calls.search(
            encoded_query, k=k, candidates=candidates, mode=mode, rerank=rerank, truncate=truncate
        )
        return _result_of_server(query, mode, rerank, (yield from _one(call)), watch)
    # Words alone need no Triton, and no encoder to agree with.
    encoder = (yield from encoder_sha256(facts)) if rerank or mode != "lexical" else None
    watch = Stopwatch()
    embedding = None
    if mode != "lexical":
        embedding = (yield from _one(triton_calls.embed(Model.EMBED_QUERY, [encoded_query], truncate=truncate)))[0]
        watch.lap("embed_query")
    found = yield from _one(
        retrieval_calls.search(
            query, embedding, mode=mode, k=candidates, encoder_sha256=encoder, include_embeddings=rerank
        )
    )
    watch.lap("retrieve")
    scores = np.asarray(found.scores, dtype=np.float32)
    if found.embeddings is not None:
        scores, _ = yield from _rerank_embeddings(
            facts, encoded_query, inputs.half_precision(found.embeddings), truncate, False, watch
        )
    ranked = rank_candidates(
        scores,
        np.arange(len(scores)),
        ids=found.ids,
        titles=found.titles,
        texts=found.texts,
        candidate_scores=found.scores,
    )
    return SearchResult(query, mode, rerank, ranked[:k], watch.finish())


def model_facts(facts: FactsCache, model: Model) -> Plan[ModelFacts]:
    """A model's config, asked for when it is not known or old."""
    known = facts.get(model)
    if known is None:
        known = yield from _one(triton_calls.model_facts(model))
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
            return (yield from _one(call))
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


def _result_of_server(
    query: str, mode: Mode, rerank: bool, found: triton_calls.FoundPassages, watch: Stopwatch
) -> SearchResult:
    passages = (
        RankedPassage(
            rank=place + 1,
            index=int(found.candidate_ranks[place]) - 1,
            score=float(found.scores[place]),
            id=found.ids[place],
            title=found.titles[place],
            text=found.texts[place],
            candidate_rank=int(found.candidate_ranks[place]),
            candidate_score=float(found.candidate_scores[place]),
        )
        for place in range(len(found.ids))
    )
    stages = zip(("embed_query", "retrieve", "rerank"), map(float, found.stage_ms), strict=True)
    timings = {stage: took_ms for stage, took_ms in stages if took_ms > 0}
    return SearchResult(query, mode, rerank, tuple(passages), {**timings, **watch.finish()})


def _rerank_embeddings(
    facts: FactsCache,
    query: bytes,
    candidates: inputs.Float16,
    truncate: bool,
    second_pass: bool,
    watch: Stopwatch,
) -> Plan[tuple[Float32, NDArray[np.int64]]]:
    model = yield from model_facts(facts, Model.RERANK)
    inputs.check_dimension(candidates, model.positive(Parameter.EMBEDDING_DIM))

    def one_pass(rows: Rows, row_in_list: Callable[[int], int]) -> Call[Float32]:
        return triton_calls.rerank(query, candidates[rows], truncate=truncate, row_in_list=row_in_list)

    return (yield from _passes(one_pass, len(candidates), model.positive(Parameter.MAX_PASSAGES), second_pass, watch))


def _rerank_texts(
    facts: FactsCache,
    query: bytes,
    passages: Sequence[bytes],
    truncate: bool,
    second_pass: bool,
    watch: Stopwatch,
) -> Plan[tuple[Float32, NDArray[np.int64]]]:
    model = yield from model_facts(facts, Model.RERANK)
    size = min(model.positive(Parameter.MAX_PASSAGES), MAX_TEXT_PASSAGES)

    def one_pass(rows: Rows, row_in_list: Callable[[int], int]) -> Call[Float32]:
        chosen = passages[rows] if isinstance(rows, slice) else [passages[row] for row in rows]
        return triton_calls.rerank_text(query, chosen, truncate=truncate, row_in_list=row_in_list)

    return (yield from _passes(one_pass, len(passages), size, second_pass, watch))


def _passes(
    one_pass: Callable[[Rows, Callable[[int], int]], Call[Float32]],
    count: int,
    size: int,
    second_pass: bool,
    watch: Stopwatch,
) -> Plan[tuple[Float32, NDArray[np.int64]]]:
    """Scores ``count`` candidates in passes of ``size``, and the best of them once more together if wanted.

    Returns:
        FP32 [n] scores, and INT64 [n], which candidates they are of, ascending.
    """
    calls = [one_pass(block, partial(operator.add, block.start)) for block in plan_blocks(count, size)]
    scores = np.concatenate((yield from _together(calls)))
    watch.lap("rerank")
    if not second_pass or len(calls) == 1:
        return scores, np.arange(count)
    # In the order of the first pass, which for this pass is the retrieval order that a causal reranker expects.
    best = ranking(scores)[:size]
    rescored = yield from _one(one_pass(best, lambda row: int(best[row])))
    watch.lap("second_pass")
    ascending = np.argsort(best)
    return rescored[ascending], best[ascending]


def _one(call: Call[T]) -> Plan[T]:
    (result,) = yield (call,)
    return cast(T, result)


def _together(calls: Sequence[Call[T]]) -> Plan[list[T]]:
    results = yield calls
    return cast(list[T], results)
