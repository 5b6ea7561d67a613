from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resrank.core.calibration import Calibration, Platt, relevance_of
from resrank.gateway.relevance import logit

from .conftest import DecidedClient, Serve

FITTED = Calibration(Platt(2.0, 0.5), Platt(3.0, -1.0), 0.3)


@given(st.floats(0, 1))
def test_the_sigmoid_of_a_logit_is_the_relevance(relevance: float) -> None:
    assert 1 / (1 + math.exp(-logit(relevance))) == pytest.approx(relevance, abs=2e-6)


def test_the_map_is_that_of_the_kind_of_score_and_of_the_weight() -> None:
    assert relevance_of(FITTED, None, words=False) is FITTED.reranker
    assert relevance_of(FITTED, None, words=True) is FITTED.with_words
    assert relevance_of(FITTED, 0.3, words=True) is FITTED.with_words
    assert relevance_of(FITTED, 0.7, words=True).name == "1 / (1 + exp(-s))"
    assert relevance_of(None, None, words=True).name == "1 / (1 + exp(-s))"


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


async def test_scores_are_told_as_what_was_fitted_makes_of_them(serve: Serve, client: DecidedClient) -> None:
    """The best of the decided scores is 1, the second 0.9."""
    client.fitted = FITTED
    async with serve() as http:
        answer = (await http.post("/v2/rerank", json={"query": "q", "documents": ["a", "b"]})).json()
        found = (await http.post("/v1/search", json={"query": "q", "k": 2})).json()
    expected = [sigmoid(2.0 * score + 0.5) for score in (1.0, 0.9)]
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx(expected)
    assert answer["meta"]["calibration"] == found["calibration"] == "platt"
    assert [passage["relevance_score"] for passage in found["passages"]] == pytest.approx(expected)
    assert [result["score"] for result in answer["results"]] == [1.0, 0.9]
