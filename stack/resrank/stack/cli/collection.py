"""``resrank collection``: the collections of an index."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from resrank.core.terminal import Terminal, print_json
from resrank.retrieval.store_url import StoreUrl
from resrank.stack.cli.options import IndexOption, Output, OutputOption

if TYPE_CHECKING:
    from resrank.client.sidecar_catalog import SidecarCatalog

app = typer.Typer(
    no_args_is_help=True, help="Make, list and drop collections of an index.", rich_markup_mode="markdown"
)

NameArgument = Annotated[str, typer.Argument(help="a-z, 0-9, '.', '_', '-' and '@', at most 64.", metavar="NAME")]
_Result = TypeVar("_Result")


@app.command(epilog="Example: `resrank collection create docs@v2 --index var/index --max-records 1000000`")
def create(
    name: NameArgument,
    index: IndexOption,
    max_records: Annotated[int, typer.Option(min=0, help="Records it may hold at most; 0 for no bound.")] = 0,
    max_bytes: Annotated[
        int, typer.Option(min=0, help="Bytes of texts, metadata and embeddings at most; 0 for no bound.")
    ] = 0,
) -> None:
    """Make an empty collection. `resrank index build --collection NAME` makes one, too, without bounds."""
    on_catalog(index, lambda catalog: catalog.create(name, max_records=max_records, max_bytes=max_bytes))
    print(f"created {name}")


@app.command("list", epilog="Example: `resrank collection list --index var/index --output json`")
def list_(index: IndexOption, output: OutputOption = Output.TEXT) -> None:
    """Print the collections of an index, what they hold and what they may hold."""
    found = on_catalog(index, lambda catalog: catalog.collections())
    if output is Output.JSON:
        print_json(
            [
                {
                    "name": collection.name,
                    "records": collection.record_count,
                    "bytes": collection.bytes,
                    "max_records": collection.quota.records,
                    "max_bytes": collection.quota.bytes,
                    "dimension": collection.dimension,
                    "encoder_sha256": collection.encoder_sha256,
                }
                for collection in found
            ]
        )
        return
    from rich.table import Table

    table = Table("name", box=None, header_style="bold", pad_edge=False)
    for name in ("records", "of", "bytes", "of"):
        table.add_column(name, justify="right")
    table.add_column("encoder")
    for collection in found:
        quota = collection.quota
        table.add_row(
            collection.name,
            str(collection.record_count),
            str(quota.records or "-"),
            str(collection.bytes),
            str(quota.bytes or "-"),
            collection.encoder_sha256[:12] or "-",
        )
    Terminal().print(table)


@app.command(epilog="Example: `resrank collection drop docs@v1 --index var/index`")
def drop(name: NameArgument, index: IndexOption) -> None:
    """Remove a collection with all its records; refused while an alias names it, and for the default one.

    Requests that are under way in it end as if it were still there.
    """
    on_catalog(index, lambda catalog: catalog.drop(name))
    print(f"dropped {name}")


def on_catalog(index: StoreUrl, work: Callable[[SidecarCatalog], Awaitable[_Result]]) -> _Result:
    """Does something with the collections of an index folder, by way of the sidecar that owns it.

    Args:
        index: The folder.
        work: What is done.

    Raises:
        ResRankError: It was refused or failed.
    """
    from resrank.client.sidecar_catalog import SidecarCatalog
    from resrank.stack.cli.index import require_folder
    from resrank.stack.index_sidecar import sidecar_of

    require_folder(index)

    async def run() -> _Result:
        async with sidecar_of(index) as sidecar:
            return await work(SidecarCatalog(sidecar))

    return asyncio.run(run())
