"""Runs benchmarks one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resrank_benchmarks.interleaving import Progress
from resrank_benchmarks.machine import describe_machine
from resrank_benchmarks.measurement import Measurement
from resrank_benchmarks.names import Benchmark
from resrank_benchmarks.report import Report


def run_benchmarks(
    wanted: Sequence[Benchmark],
    *,
    repository: Path,
    checkpoint: Path,
    corpus: Path,
    progress: Progress = lambda _: None,
) -> Report:
    """Runs benchmarks one after the other, each with servers of its own on free ports.

    Args:
        wanted: Which; all when empty.
        repository: Model repository as ``resrank export`` writes it.
        checkpoint: The checkpoint it was made from.
        corpus: What ``indexing`` indexes.
        progress: Called with one line per step.

    Returns:
        All figures and the machine they belong to.

    Raises:
        ResRankError: A benchmark could not be run.
    """
    chosen = [benchmark for benchmark in Benchmark if not wanted or benchmark in wanted]
    measurements = [_run(benchmark, repository, checkpoint, corpus, progress) for benchmark in chosen]
    return Report(describe_machine(), tuple(measurements))


def _run(benchmark: Benchmark, repository: Path, checkpoint: Path, corpus: Path, progress: Progress) -> Measurement:
    def named(step: str) -> None:
        progress(f"{benchmark.value}: {step}")

    # Each measurement is imported by itself: none should need what only another one uses.
    from resrank_benchmarks.deployment import Deployment

    match benchmark:
        case Benchmark.RERANK:
            from resrank_benchmarks import rerank

            return rerank.run(Deployment.open(repository, checkpoint), progress=named)
        case Benchmark.ENGINE:
            from resrank_benchmarks import engine

            return engine.run(Deployment.open(repository, checkpoint), progress=named)
        case Benchmark.RETRIEVAL:
            from resrank_benchmarks import retrieval

            return retrieval.run(progress=named)
        case Benchmark.INDEXING:
            from resrank_benchmarks import indexing

            return indexing.run(Deployment.open(repository, checkpoint), corpus, progress=named)
