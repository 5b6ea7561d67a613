"""Throughput of ``rerank`` by callers at once, and of ``search``, against their engines alone at their best batch."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.benchmarks.corpus_sample import fill_with_sample
from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.load import Load, closed_loop
from resrank.benchmarks.measurement import Bound, Measurement, Side
from resrank.benchmarks.study import Plot, Series, Study
from resrank.benchmarks.workload import RerankWorkload, rerank_workload
from resrank.client import AsyncResRankClient
from resrank.core.names import Model
from resrank.core.outcomes import Outcome
from resrank.core.progress import Notify
from resrank.loadtest.kinds import CallKind
from resrank.serving.engines import Engine, load_engine
from resrank.stack.local_stack import LocalStack

TARGET = 0.9
CALLERS = (1, 2, 4, 8, 16, 32, 64)
JUDGED = 16
BATCHES = (1, 2, 4, 8, 16)

_TIMEOUT_S = 60.0
_LEVEL_S = 6.0  # of requests at each number of callers, at the speed of one caller
_BATCH_S = 1.5  # of calls at each batch size
_ROUND_S = 12.0  # of one side in the judged rounds: the first and last calls of a loop have less company
_ROUNDS = 3
_ENGINES = "engines"
_PASSAGES = 2000
_FOUND = 10


def run(
    deployment: Deployment,
    *,
    callers: Sequence[int] = CALLERS,
    rounds: int = _ROUNDS,
    notify: Notify = lambda _: None,
) -> Study:
    """Measures answers a second for a 24-token query and 100 candidates, embeddings given.

    The engines are called in this process with inputs that were prepared beforehand: nothing but their time counts. The
    judged ratio is measured in rounds, both sides in turn.

    Args:
        deployment: What is served.
        callers: Numbers of callers at once; the judged one is added.
        rounds: Of the judged comparison.
        notify: Called with one line per step.

    Raises:
        BenchmarkError: The checkpoint is too small for the request.
        EngineError: An engine is not installed or refuses its graph.
        StackError: Triton cannot be started.
    """
    workload = rerank_workload(deployment)
    notify("loading the engines")
    engines = EnginesAlone(deployment, workload)
    notify(f"timing the engines alone at {', '.join(map(str, BATCHES))} rows")
    alone = {rows: engines.rows_per_s(rows, _BATCH_S) for rows in BATCHES}
    best = max(alone, key=lambda rows: alone[rows])
    notify("starting Triton and the sidecar")
    with tempfile.TemporaryDirectory() as folder, LocalStack(deployment.repository, Path(folder)) as stack:
        levels, spent = asyncio.run(_measure(stack, deployment, workload, engines, best, callers, rounds, notify))
    direct = Side.of(f"engines alone, {best} rows a call", spent[_ENGINES])
    measurements = tuple(
        Measurement(
            name=f"{kind}, {JUDGED} callers",
            unit="requests/s",
            measured=Side.of(f"{kind}, {JUDGED} callers", spent[kind]),
            baseline=direct,
            bound=Bound.AT_LEAST,
            target=TARGET,
            facts={"rows a call at best": best},
        )
        for kind in (CallKind.RERANK, CallKind.SEARCH)
    )
    return _study(levels, alone, measurements)


class EnginesAlone:
    """A repository's engines in this process, as the ensemble would use them."""

    def __init__(self, deployment: Deployment, workload: RerankWorkload) -> None:
        """Loads them.

        Args:
            deployment: Whose engines.
            workload: The row that they compute.

        Raises:
            EngineError: An engine is not installed or refuses its graph.
        """
        self._calls: list[tuple[Engine, Mapping[str, NDArray[Any]]]] = []
        if deployment.spec.fusion.query_residual:
            encoder = load_engine(deployment.graph(Model.ENCODER), deployment.engine_options(Model.ENCODER))
            self._calls.append((encoder, workload.encoder_inputs))
        reranker = load_engine(deployment.graph(Model.RERANKER), deployment.engine_options(Model.RERANKER))
        self._calls.append((reranker, workload.served_reranker_inputs))

    def rows_per_s(self, rows: int, seconds: float) -> float:
        """Requests a second, each an encoding (where the scores need it) and a pass of the reranker.

        Args:
            rows: Requests in one call of each engine.
            seconds: For how long, after one call that is not timed; at least one more call is.
        """
        batches = [
            (engine, {name: np.repeat(array, rows, axis=0) for name, array in inputs.items()})
            for engine, inputs in self._calls
        ]
        calls, elapsed = -1, 0.0
        started = time.perf_counter()
        while calls < 1 or elapsed < seconds:
            for engine, inputs in batches:
                engine.run(inputs)
            calls += 1
            if calls == 0:  # the first sight of a shape costs extra
                started = time.perf_counter()
            elapsed = time.perf_counter() - started
        return calls * rows / elapsed


async def _measure(
    stack: LocalStack,
    deployment: Deployment,
    workload: RerankWorkload,
    engines: EnginesAlone,
    best: int,
    callers: Sequence[int],
    rounds: int,
    notify: Notify,
) -> tuple[dict[int, Load], dict[str, list[float]]]:
    """Loads by callers, and requests a second of each judged side in each round."""
    async with AsyncResRankClient(
        stack.triton.grpc_address, retrieval=stack.sidecar.address, timeout_s=_TIMEOUT_S
    ) as client:
        digest, dimension = await client.encoder_sha256(), deployment.spec.encoder.embedding_dim
        await asyncio.to_thread(fill_with_sample, stack.sidecar.address, digest, dimension, _PASSAGES)

        async def rerank() -> object:
            return await client.rerank(workload.query, workload.candidates)

        async def search() -> object:
            return await client.search(workload.query, k=_FOUND, candidates=len(workload.candidates), route="server")

        warm = await closed_loop(rerank, callers=JUDGED, requests=JUDGED)
        per_level = max(8, int(warm.answered_per_s * _LEVEL_S))
        per_round = max(4 * JUDGED, int(warm.answered_per_s * _ROUND_S))
        levels: dict[int, Load] = {}
        for number in callers:
            notify(f"{number} callers")
            levels[number] = await closed_loop(rerank, callers=number, requests=max(per_level, 2 * number))
        spent: dict[str, list[float]] = {CallKind.RERANK: [], CallKind.SEARCH: [], _ENGINES: []}
        for turn in range(1, rounds + 1):
            notify(f"round {turn} of {rounds}: {JUDGED} callers of rerank, of search, then the engines alone")
            for kind, send in ((CallKind.RERANK, rerank), (CallKind.SEARCH, search)):
                load = await closed_loop(send, callers=JUDGED, requests=per_round)
                spent[kind].append(load.answered_per_s)
            spent[_ENGINES].append(engines.rows_per_s(best, _ROUND_S))  # Triton idles: nothing is in flight
    return levels, spent


def _study(levels: Mapping[int, Load], alone: Mapping[int, float], measurements: tuple[Measurement, ...]) -> Study:
    best = measurements[0].baseline.median
    rows = []
    for number, load in levels.items():
        found = load.figures
        latency = found.latency[CallKind.RERANK].percentiles
        rows.append(
            (
                number,
                load.answered_per_s,
                latency["p50"],
                latency["p95"],
                found.outcomes[Outcome.SHED],
                load.answered_per_s / best,
                load.client_cores,
            )
        )
    ensemble = Series("ensemble", tuple(map(float, levels)), tuple(load.answered_per_s for load in levels.values()))
    ceiling = Series("engines alone, best batch", ensemble.x, (best,) * len(ensemble.x))
    by_rows = ", ".join(f"{count}: {speed:.2f}" for count, speed in alone.items())
    return Study(
        name="concurrency",
        title="rerank, 100 candidates: throughput against callers at once",
        columns=(
            "callers",
            "answers/s",
            "median, ms",
            "p95, ms",
            "shed",
            "share of the engines alone",
            "client, cores",
        ),
        rows=tuple(rows),
        measurements=measurements,
        plots=(
            Plot(
                "concurrency",
                "rerank, 100 candidates",
                "callers at once",
                "answers/s",
                (ensemble, ceiling),
                log_x=True,
            ),
        ),
        notes=(
            f"The engines alone, rows in a call to requests/s: {by_rows}.",
            "A caller who is shed comes back after half a second; latencies are those of answers.",
            f"A search, by the model of that name in {_PASSAGES} passages, has the same two engines to run.",
        ),
    )
