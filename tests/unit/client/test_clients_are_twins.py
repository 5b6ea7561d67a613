from __future__ import annotations

import inspect

from resrank.client import AsyncResRankClient, ResRankClient

METHODS = (
    "search",
    "rerank",
    "rerank_stored",
    "embed_queries",
    "embed_passages",
    "encoder_sha256",
    "calibration",
    "lexical_weight",
    "health",
    "close",
)


def test_both_clients_have_the_same_methods_with_the_same_arguments_and_results() -> None:
    for name in METHODS:
        ours, theirs = getattr(ResRankClient, name), getattr(AsyncResRankClient, name)
        assert inspect.signature(ours) == inspect.signature(theirs), name
        assert inspect.iscoroutinefunction(theirs), name
    assert inspect.signature(ResRankClient) == inspect.signature(AsyncResRankClient)
