"""Runs benchmarks one after the other."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrank.benchmarks.names import Benchmark
from resrank.benchmarks.report import Finding, Report
from resrank.core.progress import Notify
from resrank.stack.machine import describe_machine

if TYPE_CHECKING:
    from resrank.benchmarks.deployment import Deployment


@dataclass(frozen=True)
class Setting:
    """What a benchmark's ``run`` may ask for, by the names of its parameters.

    Attributes:
        repository: Model repository as ``resrank export`` writes it.
        checkpoint: The checkpoint it was made from.
        corpus: Passages as JSON lines (BEIR), real texts of real lengths.
        full: Whether to measure also what takes long.
        minutes: How long ``soak`` loads the servers.
        environments: Folder of the virtual environments of what cannot be installed beside this package.
        collection: What ``quality`` searches and judges: a folder in BEIR layout.
        questions: How many of its questions at most; None for all.
        llm_repository: Another repository with the same encoder, whose reranker ``quality`` sets beside; None for none.
        cross_encoder: Folder of a trained cross-encoder that ``quality`` sets beside; None for none.
    """

    repository: Path
    checkpoint: Path
    corpus: Path
    full: bool = False
    minutes: float = 10.0
    environments: Path = Path("var")
    collection: Path = Path("examples/hotpotqa-mini")
    questions: int | None = None
    llm_repository: Path | None = None
    cross_encoder: Path | None = None

    @property
    def deployment(self) -> Deployment:
        """The repository and its checkpoint, read and compared when a benchmark asks for them."""
        from resrank.benchmarks.deployment import Deployment

        return Deployment.open(self.repository, self.checkpoint)


def run_benchmarks(
    wanted: Sequence[Benchmark],
    setting: Setting,
    *,
    notify: Notify = lambda _: None,
    finished: Callable[[Report], None] | None = None,
) -> Report:
    """Runs benchmarks one after the other, each with servers of its own on free ports.

    Args:
        wanted: Which; when empty all, but without ``setting.full`` not those that take long.
        setting: What they work on.
        notify: Called with one line per step.
        finished: Called with what one benchmark found, as soon as it has: a later one may fail.

    Returns:
        All figures and the machine they belong to.

    Raises:
        ResRankError: A benchmark could not be run.
    """
    chosen = [each for each in Benchmark if (each in wanted if wanted else setting.full or not each.only_full)]
    machine = describe_machine()
    outcomes = []
    for benchmark in chosen:
        outcomes.append(_run(benchmark, setting, notify))
        if finished is not None:
            finished(Report(machine, (outcomes[-1],)))
    return Report(machine, tuple(outcomes))


def _run(benchmark: Benchmark, setting: Setting, notify: Notify) -> Finding:
    def named(step: str) -> None:
        notify(f"{benchmark.value}: {step}")

    # Imported by itself: none should need what only another one uses.
    run: Callable[..., Finding] = importlib.import_module(f"resrank.benchmarks.{benchmark.value}").run
    asked = inspect.signature(run).parameters
    given: dict[str, Any] = {name: getattr(setting, name) for name in asked if hasattr(setting, name)}
    return run(**given, notify=named)
