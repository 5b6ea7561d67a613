"""One search by each route: the client asking step by step, and Triton's ``search`` model asked once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resrank.benchmarks.corpus_sample import QUERIES, fill_with_sample
from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.interleaving import interleave
from resrank.benchmarks.measurement import BenchmarkError, Side
from resrank.benchmarks.study import Study
from resrank.client import ResRankClient, SearchResult
from resrank.client.searches import Route
from resrank.core.progress import Notify
from resrank.stack.local_stack import LocalStack

CANDIDATES = (20, 100)

_K = 10
_PASSAGES = 2000
_WARM_UP = 5
_TIMEOUT_S = 60.0
_SCORE_TOLERANCE = 1e-3  # the same engines; only what is computed together can differ


def run(deployment: Deployment, *, runs: int = 60, notify: Notify = lambda _: None) -> Study:
    """Measures dense searches, one at a time, over an index of 2,000 passages of random vectors.

    Args:
        deployment: What is served.
        runs: Timed searches of each route and size.
        notify: Called with one line per step.

    Returns:
        Milliseconds of each route, with and without reranking.

    Raises:
        BenchmarkError: The routes found different passages.
        StackError: A server cannot be started.
    """
    rows: list[tuple[str | float | None, ...]] = []
    facts: dict[str, float | str] = {"passages": _PASSAGES, "k": _K}
    notify("starting Triton and the sidecar")
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalStack(deployment.repository, Path(folder)) as stack,
        ResRankClient(stack.triton.grpc_address, retrieval=stack.sidecar.address, timeout_s=_TIMEOUT_S) as client,
    ):
        fill_with_sample(
            stack.sidecar.address, client.encoder_sha256(), deployment.spec.encoder.embedding_dim, _PASSAGES
        )

        def search(route: Route, candidates: int, rerank: bool) -> Callable[[int], SearchResult]:
            return lambda number: client.search(
                QUERIES[number % len(QUERIES)],
                _K,
                candidates=candidates,
                mode="dense",
                rerank=rerank,
                truncate=True,
                route=route,
            )

        for candidates in CANDIDATES:
            for rerank in (True, False):
                sides = {route: search(route, candidates, rerank) for route in ("client", "server")}
                _require_equal(sides["client"](0), sides["server"](0))
                what = f"{candidates} candidates, {'reranked' if rerank else 'not reranked'}"
                notify(f"{what}: timing {runs} searches by each route")
                spent = interleave(sides, runs=runs, warm_up=_WARM_UP)
                by_client, by_server = (Side.of(route, times) for route, times in spent.items())
                rows += [
                    (what, side.label, side.median, side.p95, side.median / by_client.median)
                    for side in (by_client, by_server)
                ]
    return Study(
        name="routes",
        title="A dense search of 10 passages, one at a time, by the client's steps and by the search model",
        columns=("search", "route", "median, ms", "p95, ms", "of the client's"),
        rows=tuple(rows),
        notes=(
            "Both sides on one machine: the client's route saves no way here that it would have to go over a network, "
            "where its candidates' vectors travel twice.",
        ),
        facts=facts,
    )


def _require_equal(one: SearchResult, other: SearchResult) -> None:
    same = [passage.id for passage in one.passages] == [passage.id for passage in other.passages]
    scores, others = (np.array([passage.score for passage in found.passages]) for found in (one, other))
    if not same or not np.allclose(scores, others, atol=_SCORE_TOLERANCE):
        raise BenchmarkError("the two routes found different passages or scores: they do not compute the same")
