"""``resrank demo``: the whole path on one machine, from a checkpoint to judged rankings through live servers."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.progress import Progress, track
from rich.table import Table

from resrank.client import AsyncResRankClient, ResRankClient, SearchResult
from resrank.client.index_build import BuildReport, BuildSettings, fill_index
from resrank.core.adapter import AdapterSpec, validate_adapter
from resrank.core.checkpoint import CheckpointSpec, is_adapter, validate_folder
from resrank.core.collection import Collection, load_collection
from resrank.core.corpus import check_corpus, corpus_file
from resrank.core.errors import StackError
from resrank.core.measures import per_question, ranked
from resrank.core.search import SearchMode
from resrank.evaluation.significance import difference
from resrank.loadtest.figures import Latency
from resrank.retrieval.local.lock import read_owner
from resrank.stack.index_sidecar import sidecar_of
from resrank.stack.local_stack import LocalStack
from resrank.stack.own_name import own_name

CANDIDATES = 100
"""Passages retrieved and reranked for each question: the size that the model is made for."""

_QUESTIONS_SHOWN = 5
_PASSAGES_SHOWN = 3
# Patience with a slow machine is better than a demo that fails on one.
_SEARCH_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Ranker:
    """One way to order passages.

    Attributes:
        name: What the table calls it.
        mode: How candidates are found.
        rerank: Whether the reranker orders them.
    """

    name: str
    mode: SearchMode
    rerank: bool


RANKERS = (
    Ranker("lexical (BM25)", SearchMode.LEXICAL, rerank=False),
    Ranker("dense", SearchMode.DENSE, rerank=False),
    Ranker("hybrid", SearchMode.HYBRID, rerank=False),
    Ranker("hybrid, reranked", SearchMode.HYBRID, rerank=True),
)


@dataclass(frozen=True)
class DemoSettings:
    """What a user may choose.

    Attributes:
        work: Folder for all that is made, the demo's own: what an earlier run made there is replaced.
        checkpoint: A checkpoint of the user's own, full or adapter; None takes the trained default.
        collection: Folder in BEIR layout.
        questions: How many of its questions are judged at most.
    """

    work: Path
    checkpoint: Path | None
    collection: Path
    questions: int


class Screen:
    """A console that says when each section began.

    Args:
        console: Where it is shown.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def section(self, title: str) -> None:
        """Opens a section."""
        self.console.print(f"\n[dim]{self.elapsed_s:4.0f} s[/]  [bold]{title}[/]", highlight=False)

    def print(self, content: RenderableType, *, style: str | None = None) -> None:
        """Shows something in the section, indented."""
        self.console.print(Padding(content, (0, 0, 0, 8)), style=style, highlight=False)


def run(settings: DemoSettings, console: Console) -> None:
    """Makes, exports, serves, indexes, asks, measures and stops, and shows each step.

    Raises:
        ResRankError: A step failed; the servers are stopped before this is raised.
    """
    screen = Screen(console)
    collection = _first(load_collection(settings.collection), settings.questions)
    corpus = corpus_file(settings.collection)
    check_corpus(corpus)  # before a minute is spent on what it would then fail
    checkpoint, spec = choose_checkpoint(settings, screen)
    repository = _export(settings, checkpoint, screen)
    index = settings.work / "demo-index"  # it is deleted, so not by the name that an index of the user's would have
    if owner := read_owner(index):
        raise StackError(f"{index} is in use by process {owner.pid}: stop it, or choose another folder with --work")
    shutil.rmtree(index, ignore_errors=True)  # a resumed build would say nothing about passages per second
    screen.section("Serve")
    with LocalStack(repository, index, log_dir=settings.work / "logs") as stack:
        version = stack.triton.install.version() or "of unknown version"
        screen.print(f"Triton {version} at {stack.triton.grpc_address}, all models ready")
        screen.print(f"retrieval sidecar at {stack.sidecar.address}")
        _build_index(corpus, stack, index, screen)
        with ResRankClient(
            stack.triton.grpc_address, retrieval=stack.sidecar.address, timeout_s=_SEARCH_TIMEOUT_S
        ) as client:
            if problems := client.health().problems:
                raise StackError(f"the stack is not healthy: {'; '.join(problems)}")
            _show_answers(client, collection, screen)
            results = _ask_all(client, collection, screen)
        _show_quality(results, collection, spec, screen)
        _show_latency(results[RANKERS[-1].name], screen)
        screen.section("Stop")
    for process in stack.processes:
        if process.returncode:
            raise StackError(
                f"{process.name} ended with status {process.returncode}. Its last lines:\n{process.log_tail()}"
            )
    screen.print("both servers ended with status 0")
    screen.section("Done")
    screen.print(f"the same again, to play with:\n{own_name()} serve {repository} --index {index}")


def choose_checkpoint(settings: DemoSettings, screen: Screen) -> tuple[Path, CheckpointSpec | AdapterSpec]:
    """Takes the user's checkpoint or the default, and shows what it is.

    Returns:
        The checkpoint's folder and fields.

    Raises:
        CheckpointError: It is not valid, or the default cannot be made.
    """
    screen.section("Checkpoint")
    folder = settings.checkpoint or _default_checkpoint(screen)
    spec = validate_adapter(folder) if is_adapter(folder) else validate_folder(folder)
    screen.print(f"using {folder}")
    screen.print(f"encoder   {escape(spec.encoder.source)}, d = {spec.encoder.embedding_dim}")
    screen.print(f"reranker  {escape(spec.reranker.source)}, h = {spec.reranker.hidden_size}")
    if _is_dense_start(spec):
        screen.print(
            "[yellow]This reranker is untrained.[/] The checkpoint is dense-start (gate 0): it ranks candidates "
            "exactly as the dense retriever would. Nothing below shows what a trained ResRank can do."
        )
    return folder, spec


def _default_checkpoint(screen: Screen) -> Path:
    from resrank.export.adapters import default_checkpoint

    def show(step: str) -> None:
        screen.print(f"{escape(step)} …", style="dim")

    return default_checkpoint(show)


def _export(settings: DemoSettings, checkpoint: Path, screen: Screen) -> Path:
    screen.section("Export: every engine against the torch reference, at gate 1")
    repository = settings.work / "repository"
    from resrank.export.exporter import export_checkpoint
    from resrank.model.quiet import quiet_transformers

    def show(step: str) -> None:
        screen.print(f"{escape(step)} …", style="dim")

    with quiet_transformers():
        report = export_checkpoint(checkpoint, repository, force=True, notify=show)
    table = Table(box=None)
    for heading in ("model", "engine", "cosine", "|Δs|", "τ", "ms", ""):
        table.add_column(heading, no_wrap=True)
    for choice in report.tried:
        parity = choice.parity
        taken = choice is report.chosen[parity.model]
        table.add_row(
            parity.model.value,
            f"{parity.options.kind.value} {parity.options.precision.value}",
            "" if parity.state_cosine is None else f"{parity.state_cosine:.6f}",
            f"{parity.score_difference:.1e}",
            f"{parity.kendall_tau:.3f}",
            "" if choice.latency_ms is None else f"{choice.latency_ms:.1f}",
            "[green]taken[/]" if taken else "pass" if parity.passed else "[red]fail[/]",
        )
    screen.print(table)
    return repository


def _build_index(corpus: Path, stack: LocalStack, index: Path, screen: Screen) -> None:
    screen.section("Index")

    async def fill(show: Callable[[BuildReport], None]) -> BuildReport:
        async with (
            AsyncResRankClient(stack.triton.grpc_address, timeout_s=BuildSettings().batch_timeout_s) as client,
            sidecar_of(index) as sidecar,
        ):
            return await fill_index(corpus, client, sidecar, progress=show)

    with Progress(console=screen.console, transient=True, disable=not screen.console.is_terminal) as bar:
        task = bar.add_task("        embedding and storing", total=None)
        report = asyncio.run(
            fill(lambda report: bar.update(task, total=report.passages, completed=report.stored + report.unchanged))
        )
    if report.inserted != report.passages:
        raise StackError(f"{corpus} has {report.passages} passages, but {report.inserted} were stored in a new index")
    screen.print(
        f"{report.inserted} passages in {report.seconds:.1f} s: [bold]{report.passages_per_s:.0f} passages/s[/]"
    )


def _show_answers(client: ResRankClient, collection: Collection, screen: Screen) -> None:
    screen.section(f"Answers to {_QUESTIONS_SHOWN} questions: rank before → after reranking")
    for query_id, text in islice(collection.queries.items(), _QUESTIONS_SHOWN):
        result = _search(client, text, RANKERS[-1])
        screen.print(f"[bold]{escape(text)}[/]")
        table = Table(box=None, show_header=False)
        for passage in result.passages[:_PASSAGES_SHOWN]:
            gold = "[green]✓[/]" if collection.qrels[query_id].get(passage.id or "") else " "
            table.add_row(
                f"  {passage.candidate_rank:>3} → {passage.rank}",
                f"{passage.score:.3f}",
                gold,
                escape(passage.title or ""),
            )
        screen.print(table)
    screen.print("✓ a passage that the question needs", style="dim")


def _ask_all(client: ResRankClient, collection: Collection, screen: Screen) -> dict[str, dict[str, SearchResult]]:
    """Every question to every ranker, one at a time, so that the timings are those of an idle machine."""
    screen.section("Measure")
    screen.print(f"{len(collection.queries)} questions, {len(RANKERS)} rankings …", style="dim")
    results: dict[str, dict[str, SearchResult]] = {}
    for ranker in RANKERS:
        questions = track(
            collection.queries.items(),
            f"        asking: {ranker.name:<17}",
            console=screen.console,
            transient=True,
            disable=not screen.console.is_terminal,
        )
        results[ranker.name] = {query_id: _search(client, text, ranker) for query_id, text in questions}
    return results


def _show_quality(
    results: dict[str, dict[str, SearchResult]],
    collection: Collection,
    spec: CheckpointSpec | AdapterSpec,
    screen: Screen,
) -> None:
    screen.section(f"Quality over {len(collection.queries)} questions, through the live servers")
    measures = ("nDCG@10", "R@10", f"R@{CANDIDATES}")
    table = Table("ranking", *measures, box=None)
    found = {}
    for name, answers in results.items():
        answered = {
            query: ranked([passage.id or "" for passage in answer.passages]) for query, answer in answers.items()
        }
        found[name] = per_question(collection.qrels, answered, measures)
        means = (np.mean(list(found[name][measure].values())) for measure in measures)
        table.add_row(name, *(f"{mean:.3f}" for mean in means))
    screen.print(table)
    as_found, reranked = (np.array(list(found[RANKERS[place].name][measures[0]].values())) for place in (-2, -1))
    gain = difference(reranked, as_found)
    screen.print(
        f"reranking adds to {RANKERS[-2].name}: {measures[0]} [bold]{gain.mean:+.3f}[/], "
        f"95 % interval {gain.low:+.3f} to {gain.high:+.3f}, {gain.wins} questions won, {gain.losses} lost"
    )
    if _is_dense_start(spec):
        screen.print("[yellow]untrained reranker:[/] its line is the dense order of the hybrid candidates")


def _show_latency(answers: dict[str, SearchResult], screen: Screen) -> None:
    screen.section(f"Latency of a search with {CANDIDATES} candidates, one at a time")
    timings = [answer.timings for answer in answers.values()]
    table = Table("stage", "p50 ms", "p95 ms", box=None)
    for stage in timings[0]:
        latency = Latency.of(np.array([timing[stage] for timing in timings], np.float32) / 1e3)
        assert latency is not None
        table.add_row(stage, f"{latency.percentiles['p50']:.1f}", f"{latency.percentiles['p95']:.1f}")
    screen.print(table)


def _search(client: ResRankClient, text: str, ranker: Ranker) -> SearchResult:
    return client.search(text, k=CANDIDATES, candidates=CANDIDATES, mode=ranker.mode, rerank=ranker.rerank)


def _first(collection: Collection, count: int) -> Collection:
    queries = dict(islice(collection.queries.items(), min(count, len(collection.queries))))
    return Collection(queries, {query: collection.qrels[query] for query in queries})


def _is_dense_start(spec: CheckpointSpec | AdapterSpec) -> bool:
    return spec.fusion.residual_gate == 0 and spec.fusion.score_residual == 0
