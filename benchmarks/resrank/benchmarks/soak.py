"""Minutes of mixed load: whether memory, file descriptors or shared memory of the servers grow."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.measurement import BenchmarkError, Bound, Measurement, Side
from resrank.benchmarks.resources import SERVER, SIDECAR, Sample, look, summed
from resrank.benchmarks.soak_load import UPSERT, SoakLoad
from resrank.benchmarks.study import Plot, Series, Study
from resrank.benchmarks.trend import slope
from resrank.client import ResRankClient
from resrank.core.corpus import check_corpus, read_passages
from resrank.core.progress import Notify
from resrank.loadtest.kinds import KINDS
from resrank.stack.local_stack import LocalStack
from resrank.stack.sidecar_process import SidecarProcess

MOST_GROWTH = 1.0
"""MB (1e6 bytes) a minute by which all processes together may grow after the warm-up."""

PASSAGES = 500
SAMPLES = 120
WARM_UP = 0.25
"""Share of the time that belongs to the warm-up: allocators and caches fill."""

GROUPS = (SERVER, "stubs", SIDECAR)

_TIMEOUT_S = 120.0


def run(
    deployment: Deployment,
    corpus: Path,
    *,
    minutes: float = 10.0,
    passages: int = PASSAGES,
    notify: Notify = lambda _: None,
) -> Study:
    """Loads both servers with rerank, rerank_text, search, embed and upserts, and looks at them all the while.

    Args:
        deployment: What is served.
        corpus: Passages that are indexed, replaced, searched and embedded.
        minutes: How long.
        passages: How many of them.
        notify: Called with one line per step.

    Returns:
        Memory, its slope and the descriptors of each group of processes.

    Raises:
        BenchmarkError: A kind of request was never answered.
        StackError: A server cannot be started, or died.
    """
    _, repeated = check_corpus(corpus)
    chosen = [passage for passage in read_passages(corpus) if passage.line not in repeated][:passages]
    notify("starting Triton and the sidecar")
    samples: list[Sample] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalStack(
            deployment.repository, Path(folder), triton_port=None, metrics_port=None, retrieval_port=None
        ) as stack,
        ResRankClient(stack.triton.grpc_address, retrieval=stack.sidecar.address, timeout_s=_TIMEOUT_S) as client,
    ):
        notify(f"encoding {len(chosen)} passages")
        vectors = client.embed_passages([passage.encoder_text for passage in chosen], truncate=True)
        load = SoakLoad(client, stack.sidecar.address, chosen, vectors, deployment.manifest.checkpoint.encoder_sha256)
        load.fill()
        with load:
            started = time.monotonic()
            for number in range(SAMPLES + 1):
                due = started + 60 * minutes * number / SAMPLES
                time.sleep(max(0.0, due - time.monotonic()))
                for process in stack.processes:
                    process.check_alive()
                assert isinstance(stack.sidecar, SidecarProcess)
                samples.append(look(stack.triton, stack.sidecar, time.monotonic() - started))
                if number % (SAMPLES // 10) == 0:
                    total = sum(samples[-1].memory_mb.values())
                    notify(f"{samples[-1].at_s:.0f} s: {total:.0f} MB, {sum(load.answered.values())} answered")
    if silent := [kind for kind in (*KINDS, UPSERT) if not load.answered[kind]]:
        raise BenchmarkError(f"no request was answered of: {', '.join(silent)}")
    return soak_study(samples, dict(load.answered), dict(load.failed))


def soak_study(samples: Sequence[Sample], answered: dict[str, int], failed: dict[str, int]) -> Study:
    """The table, the judged slopes and the plot.

    Args:
        samples: In the order of time.
        answered: Requests by kind.
        failed: Requests by kind and error.
    """
    after = [sample for sample in samples if sample.at_s >= WARM_UP * samples[-1].at_s]
    minutes = [sample.at_s / 60 for sample in after]
    rows: list[tuple[str | float | None, ...]] = []
    for group in GROUPS:
        memory = [summed(sample.memory_mb, group) for sample in after]
        descriptors = [summed(dict(sample.descriptors), group) for sample in after]
        rows.append(
            (
                group,
                memory[0],
                memory[-1],
                summed(after[-1].resident_mb, group),
                slope(minutes, memory),
                int(descriptors[0]),
                int(descriptors[-1]),
            )
        )
    total = [sum(sample.memory_mb.values()) for sample in after]
    grown = slope(minutes, total)
    return Study(
        name="soak",
        title=f"{samples[-1].at_s / 60:.3g} minutes of mixed load, after a warm-up of {WARM_UP:.0%} of them",
        columns=(
            "processes",
            "PSS first, MB",
            "PSS last, MB",
            "RSS last, MB",
            "slope of PSS, MB/min",
            "descriptors first",
            "last",
        ),
        rows=tuple(rows),
        measurements=(
            Measurement(
                "soak: growth of memory",
                "MB/min",
                Side.of("slope of all processes' PSS", [grown]),
                Side.of("allowed", [MOST_GROWTH]),
                Bound.AT_MOST,
                1.0,
            ),
            _unchanged("soak: file descriptors", [float(sum(sample.descriptors.values())) for sample in after]),
            _unchanged("soak: shared-memory segments", [float(sample.segments) for sample in after]),
            _unchanged("soak: shared memory, MB", [sample.segments_mb for sample in after]),
        ),
        plots=(
            Plot(
                "soak",
                "Memory under mixed load (PSS)",
                "minutes",
                "MB",
                tuple(
                    Series(
                        group,
                        tuple(sample.at_s / 60 for sample in samples),
                        tuple(summed(sample.memory_mb, group) for sample in samples),
                    )
                    for group in GROUPS
                ),
            ),
        ),
        notes=(
            "One thread each sends rerank, rerank_text, search, embed and upserts, which replace passages, so that the "
            "index keeps its size. PSS counts shared pages once over all processes; slopes are by Theil and Sen.",
        ),
        facts={
            **{f"answered {kind}": count for kind, count in sorted(answered.items())},
            **{f"failed {kind}": count for kind, count in sorted(failed.items())},
        },
    )


def _unchanged(name: str, values: Sequence[float]) -> Measurement:
    """Holds the last third against the first: the median, so that one connection more at one moment is no growth."""
    third = max(1, len(values) // 3)
    first, last = values[:third], values[-third:]
    return Measurement(
        name,
        "median of a third of the time",
        Side.of("last third", [statistics.median(last)]),
        Side.of("first third", [statistics.median(first)]),
        Bound.AT_MOST,
        1.0,
    )
