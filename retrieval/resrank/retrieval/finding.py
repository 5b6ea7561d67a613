"""How a search's mode and fusion make results of what an engine finds by vector and by words."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from resrank.core.errors import InvalidInputError
from resrank.core.fusion import Fusion
from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.search import SearchMode
from resrank.core.tracing import inner_span
from resrank.retrieval.fusion import Ranked, reciprocal_rank_fusion, weighted_fusion
from resrank.retrieval.matches import LexicalMatches
from resrank.retrieval.records import FloatVector, Keys, SearchQuery

RRF_DEPTH = MAX_MESSAGE_RECORDS
"""Each list that reciprocal rank fusion joins is this long, whatever k: its scores depend on the depth, and what k
finds is to be the beginning of what a larger k finds."""

NO_SCORES = np.empty(0, np.float32)
_Result = TypeVar("_Result")


class Engine(Protocol):
    """One state of an index, asked for one query. Results come best first, ties by key.

    Attributes:
        deep_from: From so many matches on a joined list begins with the 1000 nearest whatever k. The more are known,
            the fewer cosines of passages found by words are needed to be sure of the k best.
    """

    deep_from: float

    def nearest(self, k: int) -> Ranked:
        """Keys and cosines of the k nearest."""

    def highest_unseen(self, nearest: Ranked) -> float:
        """No cosine outside the k nearest is above this."""

    def cosines(self, keys: Keys) -> FloatVector:
        """Cosines of any records, fp32 [len(keys)]."""

    def matches(self) -> LexicalMatches:
        """All that have a word of the query."""


@dataclass(frozen=True, slots=True)
class Found:
    """Keys, best first, and parallel to them what they score."""

    keys: Keys
    scores: FloatVector
    cosines: FloatVector
    bm25: FloatVector
    best_bm25: float = 0.0


NOTHING = Found(np.empty(0, np.int64), NO_SCORES, NO_SCORES, NO_SCORES)


class StageClock:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self.stage_ms: dict[str, float] = {}

    def run(self, stage: str, work: Callable[[], _Result]) -> _Result:
        """Runs and times a stage."""
        started = time.perf_counter()
        with inner_span(stage):
            result = work()
        self.stage_ms[stage] = 1e3 * (time.perf_counter() - started)
        return result


def find(query: SearchQuery, engine: Engine, clock: StageClock) -> Found:
    """Finds the best records.

    Raises:
        InvalidInputError: The mode needs an embedding, and there is none.
    """
    if query.mode is SearchMode.LEXICAL:
        keys, scores = clock.run("lexical", lambda: _best(engine.matches(), query.k))
        return Found(keys, scores, NO_SCORES, scores, float(scores.max(initial=0.0)))
    if query.embedding is None:
        raise InvalidInputError("embedding", f"{query.mode.name} needs a query embedding")
    if query.mode is SearchMode.DENSE:
        keys, scores = clock.run("dense", lambda: engine.nearest(query.k))
        return Found(keys, scores, scores, NO_SCORES)
    matches = clock.run("lexical", engine.matches)
    deep = query.fusion is Fusion.RRF or len(matches.keys) >= engine.deep_from
    nearest = clock.run("dense", lambda: engine.nearest(RRF_DEPTH if deep else query.k))
    keys, scores = clock.run("fusion", lambda: _fused(query, engine, nearest, matches))
    return Found(keys, scores, engine.cosines(keys), matches.scores_of(keys), matches.best)


def _best(matches: LexicalMatches, k: int) -> Ranked:
    keys = matches.first(k)
    return keys, matches.scores_of(keys)


def _fused(query: SearchQuery, engine: Engine, nearest: Ranked, matches: LexicalMatches) -> Ranked:
    if query.fusion is Fusion.RRF:
        return reciprocal_rank_fusion([nearest[0], matches.first(RRF_DEPTH)], query.k)
    return weighted_fusion(
        nearest,
        matches,
        engine.cosines,
        query.cosine_map,
        query.lexical_weight,
        query.k,
        highest_unseen=engine.highest_unseen(nearest),
    )
