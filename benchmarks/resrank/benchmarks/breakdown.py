"""Where the time of one ``rerank`` and of one ``search`` goes, and a search against its parts in one process."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np

from resrank.benchmarks.clustered_vectors import clustered_vectors
from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.gemm_peak import gemm_peak_gflops
from resrank.benchmarks.interleaving import interleave
from resrank.benchmarks.measurement import BenchmarkError, Bound, Measurement, Side
from resrank.benchmarks.search_in_process import SearchInProcess, store_in_process
from resrank.benchmarks.stored_vectors import store_vectors
from resrank.benchmarks.study import Plot, PlotKind, Series, Study
from resrank.benchmarks.time_parts import PARTS, ClientTime, time_parts
from resrank.benchmarks.triton_statistics import read_times, steps_of
from resrank.benchmarks.workload import CANDIDATES, rerank_workload
from resrank.client import ResRankClient, SearchResult
from resrank.client.calls import Call, Server
from resrank.client.searches import Route
from resrank.core.names import Model
from resrank.core.progress import Notify
from resrank.serving.engines import Precision
from resrank.stack.local_stack import LocalStack
from resrank.stack.machine import usable_cores

INDEXED = 100_000
REQUESTS = 50

SEARCH_TARGET = 1.25
"""How much slower than its three parts in one process a search may be."""

SEARCH_LIMIT_MS = 40.0
"""For a search whose reranker reads no text."""

_K = 10
_WARM_UP = 5
_SCORE_TOLERANCE = 1e-3  # the same engines; only their padding could differ
_TIMEOUT_S = 60.0

T = TypeVar("T")


class TimedClient(ResRankClient):
    """The client, which also keeps the time that it spends in calls to each server."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As the client's own."""
        super().__init__(*arguments, **options)
        self.spent_s = dict.fromkeys(Server, 0.0)

    def _method(self, call: Call[Any]) -> Callable[..., Any]:
        method = super()._method(call)

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self.spent_s[call.server] += time.perf_counter() - started

        return timed


def run(
    deployment: Deployment,
    *,
    indexed: int = INDEXED,
    requests: int = REQUESTS,
    notify: Notify = lambda _: None,
) -> Study:
    """Measures requests one at a time, 100 candidates each, and asks Triton what it did meanwhile.

    Args:
        deployment: What is served.
        indexed: Vectors in the index that is searched.
        requests: Of each kind.
        notify: Called with one line per step.

    Returns:
        Mean milliseconds of each part of ``rerank`` and of a dense ``search``; a search by each route against its
        three parts called in this process.

    Raises:
        BenchmarkError: The checkpoint is too small for the request, Triton's statistics do not fit, or the servers
            found other passages than the parts in this process.
        StackError: A server cannot be started.
    """
    workload = rerank_workload(deployment)
    vectors = clustered_vectors(indexed, deployment.spec.encoder.embedding_dim, 1).passages
    notify("starting Triton and the sidecar")
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as own,
        LocalStack(
            deployment.repository, Path(folder), triton_port=None, metrics_port=None, retrieval_port=None
        ) as stack,
        TimedClient(stack.triton.grpc_address, retrieval=stack.sidecar.address, timeout_s=_TIMEOUT_S) as client,
    ):
        metrics = f"http://{stack.triton.metrics_address}/metrics"
        notify(f"storing {indexed} vectors")
        store_vectors(stack.sidecar.address, deployment.manifest.checkpoint.encoder_sha256, vectors)
        parts: dict[str, dict[str, float]] = {}
        totals: dict[str, list[float]] = {}
        kinds: dict[str, tuple[Callable[[], object], tuple[Model, ...]]] = {
            "rerank": (lambda: client.rerank(workload.query, workload.candidates), (Model.RERANK,)),
            "search": (
                lambda: client.search(workload.query, candidates=CANDIDATES, mode="dense"),
                (
                    Model.EMBED_QUERY,
                    Model.RERANK_EMBEDDED if (deployment.repository / Model.RERANK_EMBEDDED).is_dir() else Model.RERANK,
                ),
            ),
        }
        for name, (request, ensembles) in kinds.items():
            notify(f"{requests} times {name}")
            for _ in range(_WARM_UP):
                request()
            before, spent_before = read_times(metrics), dict(client.spent_s)
            times = []
            for _ in range(requests):
                started = time.perf_counter()
                request()
                times.append(1e3 * (time.perf_counter() - started))
            after = read_times(metrics)
            spent = {server: 1e3 * (client.spent_s[server] - spent_before[server]) for server in Server}
            parts[name] = time_parts(
                ClientTime(requests, sum(times), spent[Server.TRITON], spent[Server.RETRIEVAL]),
                {model: after[model].since(before[model]) for model in after},
                {ensemble: steps_of(ensemble, deployment.spec) for ensemble in ensembles},
            )
            totals[name] = times
        notify("making the same index in this process")
        encoder = deployment.manifest.checkpoint.encoder_sha256
        with store_in_process(Path(own), encoder, vectors) as store:
            notify(f"{requests} searches by each route and in this process")
            measurements = _against_parts(client, SearchInProcess(deployment, store), workload.query, requests)
    if deployment.spec.reranker.prompt is not None:
        measurements = measurements[:1]
    return breakdown_study(parts, totals, indexed, measurements)


def _against_parts(client: ResRankClient, here: SearchInProcess, query: str, requests: int) -> tuple[Measurement, ...]:
    """The ratio to the parts, and the time itself."""

    def search(route: Route) -> SearchResult:
        return client.search(query, _K, candidates=CANDIDATES, mode="dense", route=route)

    ids, scores = here.search(query, _K, CANDIDATES)
    for route in get_args(Route):
        found = search(route).passages
        same = [passage.id for passage in found] == ids
        if not same or not np.allclose([passage.score for passage in found], scores, atol=_SCORE_TOLERANCE):
            raise BenchmarkError(f"a search by the {route}'s route found other passages or scores than its parts here")
    spent = interleave(
        {
            "search, server's route": lambda _: search("server"),
            "search, client's route": lambda _: search("client"),
            "encode, retrieve, rerank in one process": lambda _: here.search(query, _K, CANDIDATES),
        },
        runs=requests,
        warm_up=_WARM_UP,
    )
    by_server, by_client, parts = (Side.of(label, times) for label, times in spent.items())
    stages = {f"{stage}, ms": statistics.median(times[-requests:]) for stage, times in here.spent_ms.items()}
    peak = gemm_peak_gflops(Precision.FP32, usable_cores())
    return (
        Measurement(
            "search against its parts", "ms", by_server, parts, Bound.AT_MOST, SEARCH_TARGET, (by_client,), stages
        ),
        Measurement(
            "search",
            "ms",
            by_server,
            Side.of("limit", [SEARCH_LIMIT_MS]),
            Bound.AT_MOST,
            1.0,
            facts={"GEMM peak fp32, GFLOP/s": peak},
        ),
    )


def breakdown_study(
    parts: dict[str, dict[str, float]],
    totals: dict[str, list[float]],
    indexed: int,
    measurements: tuple[Measurement, ...],
) -> Study:
    """The table and the stacked bars.

    Args:
        parts: Kind of request to part to mean milliseconds.
        totals: Kind of request to the milliseconds of each.
        indexed: Vectors in the index.
        measurements: Of a search against its parts.
    """
    names = tuple(parts)
    occurring = [part for part in PARTS if any(parts[name][part] for name in names)]
    shares = {name: sum(parts[name].values()) for name in names}
    means = {name: statistics.fmean(times) for name, times in totals.items()}
    columns = tuple(title for name in names for title in (f"{name}, ms", f"{name}, share"))
    return Study(
        name="breakdown",
        title=f"Mean time of one request by part, {CANDIDATES} candidates, one request at a time",
        columns=("part", *columns),
        rows=(
            *(
                (
                    part,
                    *(
                        cell
                        for name in names
                        for cell in (parts[name][part] or None, f"{parts[name][part] / shares[name]:.1%}")
                    ),
                )
                for part in occurring
            ),
            ("all parts", *(cell for name in names for cell in (shares[name], "100%"))),
            (
                "measured from outside",
                *(cell for name in names for cell in (means[name], f"{means[name] / shares[name]:.1%}")),
            ),
        ),
        measurements=measurements,
        plots=(
            Plot(
                "breakdown",
                "Where the time of one request goes (mean)",
                "",
                "ms",
                tuple(Series(part, names, tuple(parts[name][part] for name in names)) for part in occurring),
                kind=PlotKind.STACKED_BARS,
            ),
        ),
        notes=(
            f"The search is dense, over {indexed:,} drawn vectors in a flat index. Steps and queues are from Triton's "
            "metrics page; transport and what lies between steps are what remains of the time seen from outside.",
        ),
        facts={
            f"{name}, median (p95), ms": f"{side.median:.1f} ({side.p95:.1f}) in {side.runs}"
            for side in (Side.of(name, times) for name, times in totals.items())
            for name in (side.label,)
        },
    )
