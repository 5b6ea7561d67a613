"""``resrank bench``: speed against the same work done directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from resrank_benchmarks.names import Benchmark
from resrank_stack.cli.options import Output, OutputOption

app = typer.Typer(rich_markup_mode="markdown")


@app.command(epilog="Examples: `resrank bench` · `resrank bench rerank engine --output json | jq .passed`")
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
    corpus: Annotated[Path, typer.Option(help="What `indexing` indexes: JSON lines (BEIR).")] = Path(
        "examples/hotpotqa-mini/corpus.jsonl.gz"
    ),
    output: OutputOption = Output.TEXT,
) -> None:
    """Measure speed, both sides of each ratio in one run, call by call in turn.

    - `rerank`: the whole ensemble through gRPC against its engines called directly
    - `engine`: the reranker's engine against ONNX Runtime in fp32, and its share of the machine's peak
    - `retrieval`: the sidecar's dense search against FAISS in one process
    - `indexing`: `index build` against sentence-transformers' `encode`

    Starts what it needs on free loopback ports and stops it. Takes some minutes; other load falsifies the figures.
    Exits with 1 when a target is missed.
    """
    from rich.console import Console

    from resrank_benchmarks.suite import run_benchmarks

    notes = Console(stderr=True, highlight=False)
    report = run_benchmarks(
        names or [],
        repository=repository,
        checkpoint=checkpoint,
        corpus=corpus,
        progress=lambda step: notes.print(f"{step} …", style="dim", markup=False),
    )
    if output is Output.JSON:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        report.print(Console(highlight=False))
    if not report.passed:
        raise typer.Exit(1)
