"""``resrank search``: one question to the running stack."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from resrank.core.terminal import Terminal, print_json, visible
from resrank.stack.cli.options import Output, OutputOption, RetrievalUrlOption, TritonUrlOption

if TYPE_CHECKING:
    from resrank.client import SearchResult

app = typer.Typer(rich_markup_mode="markdown")


class Mode(StrEnum):
    """How candidates are found."""

    HYBRID = "hybrid"
    DENSE = "dense"
    LEXICAL = "lexical"


class Route(StrEnum):
    """Who does the steps of a search."""

    CLIENT = "client"
    SERVER = "server"


@app.command(
    epilog='Examples: `resrank search "who wrote it?" --k 5` · '
    '`resrank search "who wrote it?" --mode lexical --no-rerank` · '
    '`resrank search "who wrote it?" --output json | jq ".passages[0].id"`'
)
def search(
    query: Annotated[str, typer.Argument(help="The question.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Passages to show.")] = 10,
    candidates: Annotated[int, typer.Option(min=1, max=1000, help="Passages to retrieve and rerank.")] = 100,
    mode: Annotated[
        Mode, typer.Option(help="Find candidates by embedding, by words, or by both, fused.")
    ] = Mode.HYBRID,
    rerank: Annotated[bool, typer.Option(help="Rerank the candidates, or show them as they were retrieved.")] = True,
    route: Annotated[
        Route,
        typer.Option(
            help="Ask Triton and the sidecar step by step from here, or have Triton's `search` model do all of it."
        ),
    ] = Route.CLIENT,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut a query over the model's token maximum instead of refusing it.")
    ] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", envvar="RESRANK_TIMEOUT", min=0.001, help="Seconds for the whole search.")
    ] = 10.0,
    triton_url: TritonUrlOption = "localhost:8001",
    retrieval_url: RetrievalUrlOption = "localhost:8003",
    output: OutputOption = Output.TEXT,
) -> None:
    """Find and rerank passages; print score, rank before reranking, title, and the time of each stage."""
    from resrank.client import ResRankClient

    with ResRankClient(triton_url, retrieval=retrieval_url, timeout_s=timeout_s) as client:
        result = client.search(
            query,
            k,
            candidates=candidates,
            mode=mode.value,
            rerank=rerank,
            truncate=truncate,
            route=route.value,
        )
    if output is Output.JSON:
        print_json(dataclasses.asdict(result))
    else:
        _print_table(result)


def _print_table(result: SearchResult) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("rank", "score", "before"):
        table.add_column(name, justify="right")
    table.add_column("id", overflow="fold")
    table.add_column("title")
    for passage in result.passages:
        # Text, not markup: brackets in a title are a title's.
        table.add_row(
            str(passage.rank),
            f"{passage.score:.4f}",
            str(passage.candidate_rank),
            Text(visible(passage.id or "")),
            Text(visible(" ".join((passage.title or (passage.text or "")[:80]).split()))),
        )
    console = Terminal()
    console.print(table if result.passages else "no passage found")
    stages = " · ".join(f"{stage.replace('_', ' ')} {took_ms:.1f} ms" for stage, took_ms in result.timings.items())
    console.print(stages, style="dim")
