"""``rerank_stored``: passages of the index, named by id, whose vectors the sidecar has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.client import inputs, plans, retrieval_calls
from resrank.client.aliases import Target, at_target
from resrank.client.facts import FactsCache
from resrank.client.ranking import rank_candidates
from resrank.client.results import RerankResult
from resrank.client.triton_calls import Float32
from resrank.core.blocks import plan_blocks
from resrank.core.collection_names import collection_name
from resrank.core.errors import InvalidInputError, Place, RetrievalError
from resrank.core.fail_open import FOR_ANSWER, FOR_RETRIEVAL, MODEL_FAILURES, NOTHING, Failure, OnFailure
from resrank.core.fusion import check_lexical_weight, joint_scores
from resrank.core.limits import MAX_LIST_CANDIDATES, MAX_MESSAGE_RECORDS
from resrank.core.passage import check_id
from resrank.core.search_plan import ServedReranker, Stopwatch
from resrank.core.sidecar.v1 import retrieval_pb2
from resrank.core.truncation import Truncation

_FIELD = "ids"


def rerank_stored(
    facts_of: Callable[[str], FactsCache],
    query: str,
    ids: Sequence[str],
    *,
    collection: str,
    lexical_weight: float | None,
    include_texts: bool,
    truncate: bool | Truncation | None,
    on_failure: OnFailure,
) -> plans.Plan[RerankResult]:
    """Reads vectors, and BM25 where it counts, and reranks, or with ``retrieval_order`` keeps the order of the ids.

    That order is the caller's, so it is there without the sidecar, too: then there are no texts to go with it, and
    nobody knows which of the passages exist.
    """
    encoded_query = inputs.encode_query(query)
    checked = _check_ids(ids)
    truncate, include_texts = inputs.truncation(truncate), inputs.truth("include_texts", include_texts)
    if lexical_weight is not None:
        lexical_weight = check_lexical_weight(lexical_weight)
    collection_name("collection", collection)

    def at(facts: FactsCache, target: Target) -> plans.Plan[RerankResult]:
        result = yield from _reranked(
            facts, query, encoded_query, checked, target.collection, lexical_weight, include_texts, truncate, on_failure
        )
        return replace(result, triton=target.triton)

    watch = Stopwatch()
    try:
        return (yield from at_target(facts_of, collection, at, has_sidecar=True))
    except MODEL_FAILURES as error:  # the sidecar's: what the models fail in is made up for within
        if on_failure is OnFailure.ERROR:
            raise
        return _as_named(checked, Failure.of(error), watch)


def _reranked(
    facts: FactsCache,
    query: str,
    encoded_query: bytes,
    checked: Sequence[str],
    collection: str,
    lexical_weight: float | None,
    include_texts: bool,
    truncate: Truncation | None,
    on_failure: OnFailure,
) -> plans.Plan[RerankResult]:
    reranker: ServedReranker | None = None
    failure: Failure | None = None
    try:
        kept = FOR_RETRIEVAL if on_failure is OnFailure.RETRIEVAL_ORDER else NOTHING
        reranker = yield from plans.leaving(kept, plans.served_reranker(facts))
    except MODEL_FAILURES as error:
        if on_failure is OnFailure.ERROR:
            raise
        failure = Failure.of(error)
    weight = 0.0
    if reranker is not None:
        weight = reranker.lexical_weight if lexical_weight is None else lexical_weight
    watch = Stopwatch()
    calls = [
        retrieval_calls.get(
            retrieval_pb2.GetRequest(
                ids=checked[block],
                include_texts=include_texts,
                include_embeddings=reranker is not None,
                text=query if weight > 0.0 else "",
                encoder_sha256="" if reranker is None else reranker.encoder_sha256,
                collection=collection,
            ),
            partial(_in_list, block.start),
        )
        for block in plan_blocks(len(checked), MAX_MESSAGE_RECORDS)
    ]
    kept = FOR_ANSWER if on_failure is OnFailure.RETRIEVAL_ORDER else NOTHING
    answers = yield from plans.leaving(kept, plans.together(calls))
    watch.lap("retrieve")
    missing = tuple(id_ for answer in answers for id_ in answer.missing_ids)
    records = [record for answer in answers for record in answer.records]
    if not records:
        return RerankResult((), watch.with_total(), missing, failure is None, failure)
    lexical, best = _lexical(answers, len(records))
    read: list[int] = []

    def scored() -> plans.Plan[plans.Scored]:
        scorer = yield from plans.embeddings_scorer(facts, encoded_query, _vectors(records), truncate, read)
        return (yield from plans.in_passes(scorer, final, False, watch))

    def final(scores: Float32, indices: NDArray[np.int64]) -> Float32:
        return scores if lexical is None else joint_scores(scores, lexical[indices], best, weight)

    if failure is None:
        found = yield from plans.or_as_given(scored(), len(records), on_failure)
    else:
        found = plans.Scored.as_given(len(records), failure)
    ranked = rank_candidates(
        found.scores,
        found.indices,
        rerank_scores=found.rerank_scores,
        ids=[record.id for record in records],
        titles=[record.title for record in records] if include_texts else None,
        texts=[record.text for record in records] if include_texts else None,
        lexical_scores=lexical,
        places=_places(checked, missing),
    )
    return RerankResult(
        ranked, watch.with_total(), missing, found.failure is None, found.failure, tokens_read=sum(read)
    )


def _as_named(ids: Sequence[str], failure: Failure, watch: Stopwatch) -> RerankResult:
    """The passages in the order of their ids, of which nothing else is known."""
    unknown = plans.Scored.as_given(len(ids), failure)
    ranked = rank_candidates(unknown.scores, unknown.indices, ids=ids)
    return RerankResult(ranked, watch.with_total(), reranked=False, failure=failure)


def _check_ids(ids: Sequence[str]) -> list[str]:
    if isinstance(ids, str | bytes | Mapping | Set) or not isinstance(ids, Sequence):
        raise InvalidInputError(_FIELD, f"must be a list of strings, not {type(ids).__name__}")
    if not 1 <= len(ids) <= MAX_LIST_CANDIDATES:
        raise InvalidInputError(_FIELD, "too few or too many", limit=f"1 to {MAX_LIST_CANDIDATES}", value=len(ids))
    seen: dict[str, int] = {}
    for index, id_ in enumerate(ids):
        place = Place(_FIELD, (index,))
        if not isinstance(id_, str):
            raise InvalidInputError(place, f"must be a string, not {type(id_).__name__}")
        check_id(place, id_)
        if seen.setdefault(id_, index) != index:
            raise InvalidInputError(place, f"stands in the list already, at {seen[id_]}")
    return list(ids)


def _in_list(start: int, place: Place) -> Place:
    return Place(place.name, (start + place.index[0],)) if place.name == _FIELD and place.index else place


def _lexical(answers: Sequence[retrieval_pb2.GetResponse], count: int) -> tuple[Float32 | None, float]:
    """FP32 [n] of all answers and the best BM25 of the index; None where no words were looked up."""
    scores = np.array([score for answer in answers for score in answer.lexical_scores], np.float32)
    if len(scores) not in (0, count):
        raise RetrievalError(f"the retrieval sidecar sent {len(scores)} lexical scores for {count} passages")
    return (scores if len(scores) else None), max(answer.max_lexical_score for answer in answers)


def _vectors(records: Sequence[Any]) -> inputs.Float16:
    """FP16 [n, d], as stored."""
    sizes = {len(record.embedding) for record in records}
    if len(sizes) != 1 or next(iter(sizes)) % 2:
        raise RetrievalError(f"the retrieval sidecar sent embeddings of {sorted(sizes)} bytes")
    packed = b"".join(record.embedding for record in records)
    return np.frombuffer(packed, "<f2").reshape(len(records), -1)


def _places(ids: Sequence[str], missing: Sequence[str]) -> list[int]:
    """Where in the caller's list the passages stand that there are."""
    absent = set(missing)
    return [place for place, id_ in enumerate(ids) if id_ not in absent]
