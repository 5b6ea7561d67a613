"""``resrank bench``: speed against the same work done otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resrank.benchmarks.names import Benchmark
from resrank.core.terminal import Terminal, print_json
from resrank.stack.cli.options import Output, OutputOption

app = typer.Typer(rich_markup_mode="markdown")

_HELP = """Measure speed, both sides of each ratio in one run, call by call in turn.

{benchmarks}

Starts what it needs on free loopback ports and stops it. Takes minutes; other load falsifies the figures.
Exits with 1 when a target is missed.
""".format(
    benchmarks="\n".join(
        f"- `{each.value}`: {each.about}{' (only by name, or with `--full`)' if each.only_full else ''}"
        for each in Benchmark
    )
)


@app.command(
    help=_HELP,
    epilog="Examples: `resrank bench` · `resrank bench rerank engine --output json | jq .passed` · "
    "`resrank bench --full --out var/bench`",
)
def bench(
    names: Annotated[
        list[Benchmark] | None, typer.Argument(metavar="[NAME]...", help="Which benchmarks; all when none is named.")
    ] = None,
    repository: Annotated[
        Path, typer.Option(envvar="RESRANK_REPOSITORY", help="Model repository, as `resrank export` writes it.")
    ] = Path("var/repository"),
    checkpoint: Annotated[
        Path, typer.Option(envvar="RESRANK_CHECKPOINT", help="The checkpoint that the repository was exported from.")
    ] = Path("var/checkpoint"),
    corpus: Annotated[Path, typer.Option(help="Passages that are indexed and encoded: JSON lines (BEIR).")] = Path(
        "examples/hotpotqa-mini/corpus.jsonl.gz"
    ),
    full: Annotated[bool, typer.Option("--full", help="Measure also what takes long, as the help says.")] = False,
    minutes: Annotated[float, typer.Option(min=1.0, max=1440.0, help="How long `soak` loads the servers.")] = 10.0,
    environments: Annotated[
        Path, typer.Option(help="Where `scripts/setup-infinity` made the environment of the server compared with.")
    ] = Path("var"),
    collection: Annotated[
        Path, typer.Option(help="The judged collection that `quality` searches: a folder in BEIR layout.")
    ] = Path("examples/hotpotqa-mini"),
    questions: Annotated[
        int | None, typer.Option(min=1, help="How many of its questions `quality` asks; all without it.")
    ] = None,
    llm_repository: Annotated[
        Path | None,
        typer.Option(help="A repository of another reranker on the same encoder, which `quality` sets beside."),
    ] = None,
    cross_encoder: Annotated[
        Path | None,
        typer.Option(help="A cross-encoder of `scripts/train_cross_encoder.py`, which `quality` sets beside."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write JSON, Markdown and plots (PNG) of each benchmark into this folder, too.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Runs benchmarks and prints what they found."""
    from resrank.benchmarks.suite import Setting, run_benchmarks

    notes = Terminal(stderr=True, highlight=False)
    documents = None
    if out is not None:
        from resrank.benchmarks.documents import Documents  # draws, which the terminal alone does not need

        documents = Documents(out)
    report = run_benchmarks(
        names or [],
        Setting(
            repository,
            checkpoint,
            corpus,
            full,
            minutes,
            environments,
            collection,
            questions,
            llm_repository,
            cross_encoder,
        ),
        notify=lambda step: notes.print(f"{step} …", style="dim", markup=False),
        finished=None if documents is None else documents.write,
    )
    if output is Output.JSON:
        print_json(report.as_json())
    else:
        report.print(Terminal(highlight=False))
    if not report.passed:
        raise typer.Exit(1)
