"""Three times more ``rerank`` requests than can be answered, and what follows."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.interleaving import Progress
from resrank.benchmarks.load import Load, Outcome, Send, arrivals, closed_loop, open_loop
from resrank.benchmarks.measurement import BenchmarkError, Bound, Measurement, Side
from resrank.benchmarks.study import Plot, Series, Study
from resrank.benchmarks.workload import rerank_workload
from resrank.client import AsyncResRankClient
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
_NORMAL = 1.5  # latency is back to normal within this factor of the calm time's 95th percentile
_PARTS = 5  # of the burst, for the spread


def run(
    deployment: Deployment, *, calm_s: float = 30.0, burst_s: float = 60.0, progress: Progress = lambda _: None
) -> Study:
    """Measures goodput and the time to be shed while too much arrives, and how long latency takes to recover.

    The saturation rate is what 16 callers in a closed loop get, measured before and after. Then requests arrive by
    chance (Poisson) at half of it, at three times of it, and at half again; latency counts from when a request was due.

    Args:
        deployment: What is served.
        calm_s: Seconds before and after the burst.
        burst_s: Seconds of the burst.
        progress: Called with one line per step.

    Raises:
        BenchmarkError: The checkpoint is too small for the request, or nothing was shed.
        StackError: Triton cannot be started.
    """
    workload = rerank_workload(deployment)
    progress("starting Triton")
    with TritonProcess(deployment.repository) as triton:

        async def measure() -> tuple[list[float], Load]:
            async with AsyncResRankClient(triton.grpc_address, timeout_s=_TIMEOUT_S) as client:

                async def send() -> object:
                    return await client.rerank(workload.query, workload.candidates)

                return await _measure(send, calm_s, burst_s, progress)

        peaks, load = asyncio.run(measure())
    return _study(peaks, load, calm_s, burst_s)


async def _measure(send: Send, calm_s: float, burst_s: float, progress: Progress) -> tuple[list[float], Load]:
    progress("looking for the saturation rate")
    warm = await closed_loop(send, callers=_CALLERS, requests=_CALLERS)
    enough = max(2 * _CALLERS, int(warm.answered_per_s * _SATURATION_S))
    before = (await closed_loop(send, callers=_CALLERS, requests=enough)).answered_per_s
    rng = np.random.default_rng(0)
    due = [
        *arrivals(CALM * before, calm_s, rng),
        *arrivals(BURST * before, burst_s, rng, start_s=calm_s),
        *arrivals(CALM * before, calm_s, rng, start_s=calm_s + burst_s),
    ]
    progress(f"{before:.1f} requests/s saturate; {len(due)} requests over {2 * calm_s + burst_s:.0f} s")
    load = await open_loop(send, due)
    progress("measuring the saturation rate again")
    after = (await closed_loop(send, callers=_CALLERS, requests=enough)).answered_per_s
    return [before, after], load


def recovery_s(calm: Load, after: Load, end_s: float) -> float:
    """Seconds from the end of a burst until latency is normal.

    It is from the moment on from which the requests' 95th percentile stays within ``_NORMAL`` times that of the calm
    time, what was shed counted as never answered: in the calm time, too, one in twenty is later than that.

    Args:
        calm: The time before the burst.
        after: The requests that were due after it.
        end_s: When it ended.

    Returns:
        0 when latency was normal at once; the last request's time when it was not in the end.
    """
    limit_s = _NORMAL * float(np.percentile(calm.latencies_ms(), 95)) / 1e3
    requests = sorted(after.requests, key=lambda request: request.due_s)
    late = np.array([each.outcome is not Outcome.ANSWERED or each.seconds > limit_s for each in requests])
    recovered = 0.0
    for start, request in enumerate(requests):
        if late[start:].mean() <= 0.05:
            break
        recovered = request.due_s - end_s
    return recovered


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
    phases = {
        "before": load.since(0.0, calm_s),
        "burst": load.since(calm_s, end_s),
        "after": load.since(end_s, end_s + calm_s),
    }
    answered_at = sorted(
        request.due_s + request.seconds for request in load.requests if request.outcome is Outcome.ANSWERED
    )
    starts = np.linspace(calm_s, end_s, _PARTS + 1)
    goodput = rates(answered_at, starts[1:].tolist())
    sheds = [load.since(start, stop).latencies_ms(Outcome.SHED) for start, stop in pairwise(starts)]
    if not all(sheds) or not goodput:
        raise BenchmarkError(f"a burst of {burst_s:g} s has parts without anything shed or answered: make it longer")
    recovered = recovery_s(phases["before"], phases["after"], end_s)
    rows = []
    for name, part in phases.items():
        median, p95 = np.percentile(part.latencies_ms(), (50, 95))
        shed = part.latencies_ms(Outcome.SHED)
        rows.append(
            (
                name,
                len(part.requests) / part.seconds,
                part.answered_per_s,
                float(median),
                float(p95),
                len(shed),
                float(np.percentile(shed, 95)) if shed else None,
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
            Side.of("95th percentile, part by part", [float(np.percentile(part, 95)) for part in sheds]),
            Side.of("limit", [SHED_LIMIT_MS]),
            Bound.AT_MOST,
            1.0,
        ),
        Measurement(
            "recovery after the burst",
            "s",
            Side.of("until latency is normal", [recovered]),
            Side.of("limit", [RECOVERY_LIMIT_S]),
            Bound.AT_MOST,
            1.0,
            facts={"normal, times the 95th percentile before the burst": _NORMAL},
        ),
    )
    answered = sorted(
        (request.due_s, 1e3 * request.seconds) for request in load.requests if request.outcome is Outcome.ANSWERED
    )
    shed_points = sorted(
        (request.due_s, 1e3 * request.seconds) for request in load.requests if request.outcome is Outcome.SHED
    )
    series = tuple(
        Series(label, tuple(x for x, _ in points), tuple(y for _, y in points))
        for label, points in (("answered", answered), ("shed", shed_points))
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
        facts={"client, cores": load.client_cores, "expired": load.count(Outcome.EXPIRED)},
    )
