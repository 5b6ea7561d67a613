"""Three times more ``rerank`` requests than can be answered, and what follows."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.load import Load, Send, closed_loop, open_loop
from resrank.benchmarks.measurement import BenchmarkError, Bound, Measurement, Side
from resrank.benchmarks.study import Plot, Series, Study
from resrank.benchmarks.workload import rerank_workload
from resrank.client import AsyncResRankClient
from resrank.core.outcomes import Outcome
from resrank.core.progress import Notify
from resrank.loadtest.arrivals import poisson_arrivals
from resrank.loadtest.figures import figures, recovery_s
from resrank.loadtest.kinds import CallKind
from resrank.loadtest.profile import Profile
from resrank.stack.triton_process import TritonProcess

GOODPUT_TARGET = 0.9
SHED_LIMIT_MS = 50.0
RECOVERY_LIMIT_S = 5.0
BURST = 3.0
CALM = 0.5
"""Rate before and after the burst, as a share of the saturation rate: at the rate itself a queue grows by chance."""

_CALLERS = 16
_SATURATION_S = 15.0
_TIMEOUT_S = 60.0  # no request expires, so that every one is answered or shed by the server
_PARTS = 5  # of the burst, for the spread


@dataclass(frozen=True)
class _Phase:
    level: float
    duration_s: float
    ramp_s: float = 0.0


def run(
    deployment: Deployment, *, calm_s: float = 30.0, burst_s: float = 60.0, notify: Notify = lambda _: None
) -> Study:
    """Measures goodput and the time to be shed while too much arrives, and how long latency takes to recover.

    The saturation rate is what 16 callers in a closed loop get, measured before and after. Then requests arrive by
    chance (Poisson) at half of it, at three times of it, and at half again; latency counts from when a request was
    due. Recovery is judged as a load test judges it.

    Args:
        deployment: What is served.
        calm_s: Seconds before and after the burst.
        burst_s: Seconds of the burst.
        notify: Called with one line per step.

    Raises:
        BenchmarkError: The checkpoint is too small for the request, or nothing was shed.
        StackError: Triton cannot be started.
    """
    workload = rerank_workload(deployment)
    notify("starting Triton")
    with TritonProcess(deployment.repository) as triton:

        async def measure() -> tuple[list[float], Load]:
            async with AsyncResRankClient(triton.grpc_address, timeout_s=_TIMEOUT_S) as client:

                async def send() -> object:
                    return await client.rerank(workload.query, workload.candidates)

                return await _measure(send, calm_s, burst_s, notify)

        peaks, load = asyncio.run(measure())
    return _study(peaks, load, calm_s, burst_s)


async def _measure(send: Send, calm_s: float, burst_s: float, notify: Notify) -> tuple[list[float], Load]:
    notify("looking for the saturation rate")
    warm = await closed_loop(send, callers=_CALLERS, requests=_CALLERS)
    enough = max(2 * _CALLERS, int(warm.answered_per_s * _SATURATION_S))
    before = (await closed_loop(send, callers=_CALLERS, requests=enough)).answered_per_s
    phases = [_Phase(CALM * before, calm_s), _Phase(BURST * before, burst_s), _Phase(CALM * before, calm_s)]
    due = list(poisson_arrivals(Profile(phases), np.random.default_rng(0)))
    notify(f"{before:.1f} requests/s saturate; {len(due)} requests over {2 * calm_s + burst_s:.0f} s")
    load = await open_loop(send, due)
    notify("measuring the saturation rate again")
    after = (await closed_loop(send, callers=_CALLERS, requests=enough)).answered_per_s
    return [before, after], load


def rates(moments: Sequence[float], bounds: Sequence[float]) -> list[float]:
    """Answers a second between bounds, each moved to the last answer before it.

    Answers come in batches: between fixed bounds there would be one batch more or less by chance.

    Args:
        moments: Of the answers, in seconds, ascending.
        bounds: In seconds, ascending.

    Returns:
        One figure between each two bounds; fewer where no answer came between them.
    """
    counts = sorted({bisect_right(moments, bound) for bound in bounds} - {0})
    return [(last - first) / (moments[last - 1] - moments[first - 1]) for first, last in pairwise(counts)]


def _study(peaks: list[float], load: Load, calm_s: float, burst_s: float) -> Study:
    end_s = calm_s + burst_s
    answered, shed = load.ended(Outcome.OK), load.ended(Outcome.SHED)
    starts = np.linspace(calm_s, end_s, _PARTS + 1)
    goodput = rates(np.sort(answered["start"] + answered["latency"]).tolist(), starts[1:].tolist())
    sheds = [figures(load.calls, start, stop).time_to_shed for start, stop in pairwise(starts)]
    told = [part.percentiles["p95"] for part in sheds if part is not None]
    if len(told) < _PARTS or not goodput:
        raise BenchmarkError(f"a burst of {burst_s:g} s has parts without anything shed or answered: make it longer")
    recovered = recovery_s(load.calls, (0.0, calm_s), end_s, end_s + calm_s)
    rows = []
    for name, (start, stop) in {
        "before": (0.0, calm_s),
        "burst": (calm_s, end_s),
        "after": (end_s, end_s + calm_s),
    }.items():
        part = figures(load.calls, start, stop)
        latency = part.latency[CallKind.RERANK].percentiles
        rows.append(
            (
                name,
                part.offered,
                part.goodput,
                latency["p50"],
                latency["p95"],
                part.outcomes[Outcome.SHED],
                None if part.time_to_shed is None else part.time_to_shed.percentiles["p95"],
            )
        )
    measurements = (
        Measurement(
            "goodput in the burst",
            "answers/s",
            Side.of(f"at {BURST:g} x the saturation rate", goodput),
            Side.of("saturation", peaks),
            Bound.AT_LEAST,
            GOODPUT_TARGET,
        ),
        Measurement(
            "time to be shed",
            "ms",
            Side.of("95th percentile, part by part", told),
            Side.of("limit", [SHED_LIMIT_MS]),
            Bound.AT_MOST,
            1.0,
        ),
        Measurement(
            "recovery after the burst",
            "s",
            Side.of("until latency is normal", [calm_s if recovered is None else recovered]),
            Side.of("limit", [RECOVERY_LIMIT_S]),
            Bound.AT_MOST,
            1.0,
        ),
    )
    series = tuple(
        Series(label, tuple(calls["start"].tolist()), tuple((1e3 * calls["latency"]).tolist()))
        for label, calls in (("answered", answered), ("shed", shed))
    )
    return Study(
        name="overload",
        title=f"rerank, 100 candidates: {CALM:g}, {BURST:g} and {CALM:g} x the saturation rate",
        columns=("phase", "arrivals/s", "answers/s", "median, ms", "p95, ms", "shed", "p95 of sheds, ms"),
        rows=tuple(rows),
        measurements=measurements,
        plots=(
            Plot("overload", "rerank under a burst", "due, s", "ms to the answer or the shedding", series, log_y=True),
        ),
        notes=("Latency counts from when a request was due.",),
        facts={"client, cores": load.client_cores, "expired": load.figures.outcomes[Outcome.DEADLINE]},
    )
