"""``resrank search``: one question to the running stack."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from resrank.core.fail_open import OnFailure
from resrank.core.fusion import MAX_LEXICAL_WEIGHT, Fusion
from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.metadata import Metadata
from resrank.core.search import DEFAULT_CANDIDATES, DEFAULT_K, SearchMode
from resrank.core.terminal import Terminal, print_json, visible
from resrank.stack.cli.options import CollectionOption, Output, OutputOption, RetrievalUrlOption, TritonUrlOption

if TYPE_CHECKING:
    from resrank.client import SearchResult

app = typer.Typer(rich_markup_mode="markdown")


class Route(StrEnum):
    """Who does the steps of a search."""

    CLIENT = "client"
    SERVER = "server"


@app.command(
    epilog='Examples: `resrank search "who wrote it?" --k 5` · '
    '`resrank search "who wrote it?" --mode lexical --no-rerank` · '
    '`resrank search "who wrote it?" --filter "year >= 2020 and lang in (en, de)"` · '
    '`resrank search "who wrote it?" --output json | jq ".passages[0].id"`'
)
def search(
    query: Annotated[str, typer.Argument(help="The question.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Passages to show.")] = DEFAULT_K,
    candidates: Annotated[
        int, typer.Option(min=1, max=MAX_MESSAGE_RECORDS, help="Passages to retrieve and rerank.")
    ] = DEFAULT_CANDIDATES,
    mode: Annotated[
        SearchMode, typer.Option(help="Find candidates by embedding, by words, or by both, fused.")
    ] = SearchMode.HYBRID,
    fusion: Annotated[
        Fusion, typer.Option(help="Join both lists of hybrid by weighted scores or by reciprocal ranks.")
    ] = Fusion.WEIGHTED,
    lexical_weight: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=MAX_LEXICAL_WEIGHT,
            help="Weight of BM25 / best BM25 in hybrid's scores and in the reranked order.",
            show_default="the checkpoint's",
        ),
    ] = None,
    collection: CollectionOption = "",
    rerank: Annotated[bool, typer.Option(help="Rerank the candidates, or show them as they were retrieved.")] = True,
    condition: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="CONDITION",
            help="Only passages whose metadata meets it: `year >= 2020 and lang in (en, de)`. Comparisons are by `=`, "
            "`!=`, `<`, `<=`, `>`, `>=`, `in`, `not in` and `exists`, joined by `and`, `or`, `not` and parentheses; "
            "strings with blanks stand in quotes.",
        ),
    ] = None,
    include_metadata: Annotated[bool, typer.Option("--metadata", help="Show each passage's metadata.")] = False,
    route: Annotated[
        Route,
        typer.Option(
            help="Ask Triton and the sidecar step by step from here, or have Triton's `search` model do all of it."
        ),
    ] = Route.CLIENT,
    on_failure: Annotated[
        OnFailure,
        typer.Option(
            envvar="RESRANK_ON_FAILURE",
            help="Where the models are down, full or late: fail, or show the passages in retrieval order.",
        ),
    ] = OnFailure.ERROR,
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
    """Find and rerank passages; print score, its parts, rank before reranking, title, and the time of each stage."""
    from resrank.client import ResRankClient
    from resrank.core.tracing import export_traces

    export_traces("resrank-search")
    with ResRankClient(triton_url, retrieval=retrieval_url, timeout_s=timeout_s) as client:
        result = client.search(
            query,
            k,
            candidates=candidates,
            mode=mode,
            fusion=fusion,
            lexical_weight=lexical_weight,
            rerank=rerank,
            collection=collection,
            filter=condition,
            include_metadata=include_metadata,
            truncate=truncate,
            route=route.value,
            on_failure=on_failure,
        )
    if output is Output.JSON:
        print_json(dataclasses.asdict(result))
    else:
        _print_table(result)


def _metadata_text(metadata: Metadata) -> str:
    """JSON, with whole numbers as one would write them."""
    whole = {name: int(value) for name, value in metadata.items() if isinstance(value, float) and value.is_integer()}
    return json.dumps({**metadata, **whole}, ensure_ascii=False, sort_keys=True)


def _print_table(result: SearchResult) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    parts = {
        heading: attribute
        for heading, attribute in (("rerank", "rerank_score"), ("dense", "dense_score"), ("BM25", "lexical_score"))
        if any(getattr(passage, attribute) is not None for passage in result.passages)
    }
    for name in ("rank", "score", *parts, "before"):
        table.add_column(name, justify="right")
    table.add_column("id", overflow="fold")
    table.add_column("title")
    shows_metadata = any(passage.metadata is not None for passage in result.passages)
    if shows_metadata:
        table.add_column("metadata", overflow="fold")
    for passage in result.passages:
        # Text, not markup: brackets in a title are a title's.
        table.add_row(
            str(passage.rank),
            f"{passage.score:.4f}",
            *(f"{getattr(passage, attribute):.4f}" for attribute in parts.values()),
            str(passage.candidate_rank),
            Text(visible(passage.id or "")),
            Text(visible(" ".join((passage.title or (passage.text or "")[:80]).split()))),
            *([Text(visible(_metadata_text(passage.metadata or {})))] if shows_metadata else []),
        )
    console = Terminal()
    console.print(table if result.passages else "no passage found")
    stages = " · ".join(f"{stage.replace('_', ' ')} {took_ms:.1f} ms" for stage, took_ms in result.timings.items())
    console.print(stages, style="dim")
    if result.failure is not None:
        alone = ", found by words alone" if result.mode == SearchMode.LEXICAL else ""
        said = f"In retrieval order{alone}, since the models failed: {visible(str(result.failure))}"
        console.print(Text(said, style="yellow"), soft_wrap=True)
