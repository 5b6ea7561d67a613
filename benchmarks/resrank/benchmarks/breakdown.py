"""Where the time of one ``rerank`` and of one ``search`` goes."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from resrank.benchmarks.clustered_vectors import clustered_vectors
from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.measurement import Side
from resrank.benchmarks.stored_vectors import store_vectors
from resrank.benchmarks.study import Plot, PlotKind, Series, Study
from resrank.benchmarks.time_parts import PARTS, ClientTime, time_parts
from resrank.benchmarks.triton_statistics import read_times, steps_of
from resrank.benchmarks.workload import CANDIDATES, rerank_workload
from resrank.client import ResRankClient
from resrank.client.calls import Call, Server
from resrank.core.names import Model
from resrank.core.progress import Notify
from resrank.stack.local_stack import LocalStack

INDEXED = 100_000
REQUESTS = 50

_WARM_UP = 5
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
        Mean milliseconds of each part of ``rerank`` and of a dense ``search``.

    Raises:
        BenchmarkError: The checkpoint is too small for the request, or Triton's statistics do not fit.
        StackError: A server cannot be started.
    """
    workload = rerank_workload(deployment)
    vectors = clustered_vectors(indexed, deployment.spec.encoder.embedding_dim, 1).passages
    notify("starting Triton and the sidecar")
    with (
        tempfile.TemporaryDirectory() as folder,
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
                (Model.EMBED_QUERY, Model.RERANK),
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
    return breakdown_study(parts, totals, indexed)


def breakdown_study(parts: dict[str, dict[str, float]], totals: dict[str, list[float]], indexed: int) -> Study:
    """The table and the stacked bars.

    Args:
        parts: Kind of request to part to mean milliseconds.
        totals: Kind of request to the milliseconds of each.
        indexed: Vectors in the index.
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
