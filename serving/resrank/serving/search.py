"""``search``: a query's text to the best passages, by what ``embed_query``, the retrieval sidecar and ``rerank`` do.

The candidates' vectors go from the sidecar to the reranker inside one machine, and never to the caller.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import DeadlineExceededError, InvalidInputError, QueueFullError, ResRankError
from resrank.core.fail_open import OnFailure
from resrank.core.filter_text import parse_filter
from resrank.core.fusion import Fusion
from resrank.core.limits import MAX_QUERY_BYTES
from resrank.core.metadata import write_metadata
from resrank.core.names import Model, Parameter, Tensor
from resrank.core.scoring import Float32
from resrank.core.search import DEFAULT_CANDIDATES, DEFAULT_K, SearchMode, SearchOptions, choice
from resrank.core.search_plan import (
    STAGES,
    AskReranker,
    EmbedQuery,
    Found,
    Retrieve,
    ScorePass,
    ServedReranker,
    Step,
    plan_search,
    reserve,
)
from resrank.core.tokenization import decode_text, row_field
from resrank.serving.load_metrics import SearchMetrics
from resrank.serving.near_steps import NearSteps
from resrank.serving.request_trace import traced_part
from resrank.serving.rerank_chain import RerankChain
from resrank.serving.retriever import LONGEST_S, Retriever
from resrank.serving.step import Arrays, StepRequest

BLOCKS_IN_FLIGHT = 4
"""Passes of one search that are under way at the same time, as in the client: enough to be computed together, and too
few for one search to fill an engine's queue."""


MAX_LATE_CALLS = 64
"""Calls to models that searches have gone on without, and that are under way still. Each occupies one of the event
loop's threads (:mod:`resrank.serving.deferred`), of which a model that stands still must leave enough to the others."""


class SearchStep:
    """QUERY BYTES [1, 1] to what was found, best first: IDS, TITLES, TEXTS, *SCORES, CANDIDATE_* [1, k'], and more."""

    def __init__(
        self,
        models: NearSteps,
        retriever: Retriever,
        reranker: ServedReranker,
        chain: RerankChain | None = None,
        metrics: SearchMetrics | None = None,
    ) -> None:
        """Prepares the calls.

        Args:
            models: Calls another model, or takes its step here.
            retriever: Finds candidates.
            reranker: What the model's own config says. The encoder goes with every search, so that the sidecar
                compares it with the index that it has at that moment: nothing is remembered here that a restarted
                sidecar would make wrong.
            chain: Scores with the query's vector at hand, some of it in this process; None where the models do.
            metrics: Told of searches that were answered without the reranker; None in repositories of earlier versions.
        """
        self._models = models
        self._retriever = retriever
        self._reranker = reranker
        self._chain = chain
        self._metrics = metrics
        self._late: set[asyncio.Future[Any]] = set()

    async def answer(self, request: StepRequest) -> Arrays:
        """Searches once (see :class:`resrank.serving.deferred.RequestStep`).

        Raises:
            InvalidInputError: The query or a parameter breaks a rule.
            RetrievalError: The sidecar failed, or its index belongs to another encoder.
            ServerUnavailableError: The sidecar does not answer.
            QueueFullError: A queue was full.
            DeadlineExceededError: The caller's time is over.
        """
        options = read_options(request.parameters)
        if options.on_failure is OnFailure.RETRIEVAL_ORDER and request.deadline is None:
            request = replace(request, deadline=time.monotonic() + LONGEST_S)
        budget_s = LONGEST_S if request.deadline is None else request.deadline - time.monotonic()
        queries = request.inputs[Tensor.QUERY]
        text = decode_text(queries[0, 0], row_field(Tensor.QUERY, 0, 1), max_bytes=MAX_QUERY_BYTES)
        plan = plan_search(text, options, include_texts=request.wants(Tensor.TITLES, Tensor.TEXTS))
        try:
            steps = next(plan)
            while True:
                # Steps that are taken at the same time are of one kind.
                kept_s = reserve(steps[0], options).seconds(budget_s)
                try:
                    results = await self._taken(steps, request, kept_s)
                except ResRankError as error:
                    steps = plan.throw(error)
                else:
                    steps = plan.send(results)
        except StopIteration as end:
            found: Found = end.value
        if found.failure is not None and self._metrics is not None:
            self._metrics.not_reranked(found.failure.outcome)
        return _outputs(found, include_metadata=options.include_metadata)

    async def _taken(self, steps: Sequence[Step], request: StepRequest, kept_s: float) -> list[Any]:
        """Takes steps that may be taken at the same time, few of them at once, and leaves some of the time over."""
        places = asyncio.Semaphore(BLOCKS_IN_FLIGHT)
        failed = False

        async def take(step: Step) -> Any:
            nonlocal failed
            async with places:
                if failed:  # what is under way is waited for, but nothing more is sent
                    return None
                try:
                    return await self._take_in_time(step, request, kept_s)
                except BaseException:
                    failed = True
                    raise

        outcomes = await asyncio.gather(*map(take, steps), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return outcomes

    async def _take_in_time(self, step: Step, request: StepRequest, kept_s: float) -> Any:
        """Takes a step that the search goes on without where it takes too long.

        Nothing is cancelled then: a call to another model ends when that model answers.
        """
        if kept_s == 0.0 or request.deadline is None:
            return await self._take(step, request)
        if len(self._late) >= MAX_LATE_CALLS:
            raise QueueFullError(f"the models are late with {len(self._late)} calls of other searches")
        until = request.deadline - kept_s
        call = asyncio.ensure_future(self._take(step, replace(request, deadline=until)))
        done, _ = await asyncio.wait({call}, timeout=max(0.0, until - time.monotonic()))
        if done:
            return call.result()
        self._late.add(call)
        call.add_done_callback(self._end_late)
        raise DeadlineExceededError(f"no answer with {kept_s:.3g} s left, which are kept for the retrieval order")

    def _end_late(self, call: asyncio.Future[Any]) -> None:
        self._late.discard(call)
        if not call.cancelled():
            call.exception()  # that it failed is nobody's news any more

    async def _take(self, step: Step, request: StepRequest) -> Any:
        queries = request.inputs[Tensor.QUERY]
        match step:
            case AskReranker():
                return self._reranker
            case EmbedQuery():
                return (await self._models.embed_query(queries, request))[0]
            case Retrieve(asked):
                with traced_part(request.trace, "retrieve"):
                    return await self._retriever.search(asked, request.deadline)
            case ScorePass(candidates, _, embedding):
                attributes = {"resrank.candidates": len(candidates)}
                with traced_part(request.trace, "score_pass", attributes) as trace:
                    request = replace(request, trace=trace)
                    if embedding is not None and self._chain is not None:
                        return await self._chain.score(queries, embedding, candidates, request)
                    inputs: Arrays = {Tensor.QUERY: queries, Tensor.CANDIDATES: candidates[np.newaxis]}
                    model = Model.RERANK
                    if embedding is not None:
                        model, inputs = Model.RERANK_EMBEDDED, {**inputs, Tensor.QUERY_EMBEDDING: embedding[np.newaxis]}
                    return (await self._models(model, inputs, (Tensor.SCORES,), request))[Tensor.SCORES][0]


def read_options(parameters: Mapping[str, object]) -> SearchOptions:
    """Reads request parameters; those of other names are other people's, such as headers that Triton forwards.

    Raises:
        InvalidInputError: One has the wrong type or is out of its range.
    """
    condition = _of_type(str, parameters, Parameter.FILTER, "")
    return SearchOptions(
        k=_of_type(int, parameters, Parameter.K, DEFAULT_K),
        candidates=_of_type(int, parameters, Parameter.CANDIDATES, DEFAULT_CANDIDATES),
        mode=choice("mode", SearchMode, _of_type(str, parameters, Parameter.MODE, SearchMode.HYBRID.value)),
        fusion=choice("fusion", Fusion, _of_type(str, parameters, Parameter.FUSION, Fusion.WEIGHTED.value)),
        rerank=_of_type(bool, parameters, Parameter.RERANK, True),
        lexical_weight=parameters.get(Parameter.LEXICAL_WEIGHT),  # type: ignore[arg-type]  # checked there
        on_failure=choice(
            "on_failure", OnFailure, _of_type(str, parameters, Parameter.ON_FAILURE, OnFailure.ERROR.value)
        ),
        collection=_of_type(str, parameters, Parameter.COLLECTION, ""),
        filter=parse_filter(condition) if Parameter.FILTER in parameters else None,
        include_metadata=_of_type(bool, parameters, Parameter.INCLUDE_METADATA, False),
    )


def _outputs(found: Found, *, include_metadata: bool) -> Arrays:
    candidates, best = found.candidates, found.best
    columns: dict[Tensor, NDArray[Any]] = {
        Tensor.IDS: _texts(candidates.ids, best),
        Tensor.SCORES: found.scores[best],
        Tensor.CANDIDATE_RANKS: best.astype(np.int32) + 1,
        Tensor.CANDIDATE_SCORES: candidates.scores[best],
        Tensor.DENSE_SCORES: _part(candidates.dense_scores, best),
        Tensor.LEXICAL_SCORES: _part(candidates.lexical_scores, best),
        Tensor.RERANK_SCORES: _part(found.rerank_scores, best),
        Tensor.FAILURE: np.array([str(found.failure or "").encode()], np.object_),
        Tensor.STAGE_MS: np.array([found.stage_ms.get(stage, 0.0) for stage in STAGES], np.float32),
    }
    if candidates.titles or not candidates.ids:
        columns[Tensor.TITLES] = _texts(candidates.titles, best)
        columns[Tensor.TEXTS] = _texts(candidates.texts, best)
    if include_metadata:
        columns[Tensor.METADATA] = _texts(list(map(write_metadata, candidates.metadata)), best)
    return {name: column[np.newaxis] for name, column in columns.items()}


def _part(scores: Float32 | None, best: NDArray[np.int64]) -> Float32:
    return np.full(len(best), np.nan, np.float32) if scores is None else scores[best]


def _texts(values: Sequence[str], best: NDArray[np.int64]) -> NDArray[np.object_]:
    """BYTES of those chosen."""
    chosen = np.empty(len(best), dtype=np.object_)
    chosen[:] = [values[place].encode() for place in best.tolist()]
    return chosen


_KINDS = {str: "a string", int: "a whole number", bool: "true or false"}


def _of_type(kind: type[Any], parameters: Mapping[str, object], name: Parameter, default: Any) -> Any:
    value = parameters.get(name, default)
    if type(value) is not kind:  # a bool is an int to Python
        given = json.dumps(value, default=str)
        raise InvalidInputError(name, f"must be a request parameter that is {_KINDS[kind]}, not {given}")
    return value
