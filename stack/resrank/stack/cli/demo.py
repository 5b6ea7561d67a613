"""``resrank demo``: from a checkpoint to judged rankings, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resrank.core.terminal import Terminal

app = typer.Typer(rich_markup_mode="markdown")


@app.command(epilog="Examples: `resrank demo` · `resrank demo --checkpoint my-checkpoint --work /tmp/resrank-demo`")
def demo(
    work: Annotated[
        Path, typer.Option(envvar="RESRANK_WORK", help="Folder for all that is made, the demo's own.")
    ] = Path("var/demo"),
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            envvar="RESRANK_CHECKPOINT",
            help="A checkpoint of your own, full or adapter [default: the one that comes with ResRank].",
        ),
    ] = None,
    collection: Annotated[Path, typer.Option(help="Questions, passages and judgements in BEIR layout.")] = Path(
        "examples/hotpotqa-mini"
    ),
    questions: Annotated[int, typer.Option(min=1, help="How many questions are judged at most.")] = 200,
) -> None:
    """Take a checkpoint, export, serve, index, search, measure, stop.

    Starts a real Triton and a real retrieval sidecar on free loopback ports, puts every question through them, prints
    nDCG@10 of lexical, dense, hybrid and reranked search and the latency of each stage, and stops both. Exits with 0
    only if every step succeeded.
    """
    from resrank.stack.demo import DemoSettings, run

    run(DemoSettings(work, checkpoint, collection, questions), Terminal())
