from __future__ import annotations

import numpy as np
import pytest

from resrank.core.fusion import Fusion
from resrank.core.search import SearchMode
from resrank.retrieval.finding import RRF_DEPTH, StageClock, find
from resrank.retrieval.fusion import Ranked
from resrank.retrieval.matches import LexicalMatches
from resrank.retrieval.records import FloatVector, Keys, SearchQuery

COSINES = np.linspace(1, 0, 3000, dtype=np.float32)  # of key 0 on


class Line:
    """An exact index of 3000 passages, of which some have a word; remembers how many nearest it was asked for."""

    deep_from = 500.0

    def __init__(self, matching: int) -> None:
        self._matches = LexicalMatches(np.arange(matching), np.ones(matching))
        self.asked: list[int] = []

    def nearest(self, k: int) -> Ranked:
        self.asked.append(k)
        return np.arange(k), COSINES[:k]

    def highest_unseen(self, nearest: Ranked) -> float:
        return float(nearest[1].min())

    def cosines(self, keys: Keys) -> FloatVector:
        found: FloatVector = COSINES[keys]
        return found

    def matches(self) -> LexicalMatches:
        return self._matches


@pytest.mark.parametrize(
    ("matching", "fusion", "asked"),
    [
        (499, Fusion.WEIGHTED, 10),
        (500, Fusion.WEIGHTED, RRF_DEPTH),
        (0, Fusion.WEIGHTED, 10),
        (0, Fusion.RRF, RRF_DEPTH),
    ],
)
def test_many_matches_are_joined_with_more_of_the_nearest(matching: int, fusion: Fusion, asked: int) -> None:
    engine = Line(matching)
    query = SearchQuery(SearchMode.HYBRID, 10, text="word", embedding=np.ones(2, np.float32), fusion=fusion)
    found = find(query, engine, StageClock())
    assert engine.asked == [asked]
    assert found.keys.tolist() == list(range(10))
