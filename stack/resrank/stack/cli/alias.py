"""``resrank alias``: names that stand for a collection and the Triton whose checkpoint made its vectors."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from resrank.core.terminal import Terminal, print_json, visible
from resrank.stack.cli.collection import NameArgument, on_catalog
from resrank.stack.cli.options import IndexOption, Output, OutputOption, index_arguments

if TYPE_CHECKING:
    from resrank.client.sidecar_catalog import SidecarCatalog
    from resrank.core.sidecar.v1.retrieval_pb2 import Alias

app = typer.Typer(
    no_args_is_help=True,
    help="Point names at collections, and move them without downtime.",
    rich_markup_mode="markdown",
)


@app.command(
    "set",
    epilog="Examples: `resrank alias set docs docs@v2 --index var/index` · "
    "`resrank alias set docs docs@v3 --triton 10.0.0.7:9001 --index var/index`",
)
def set_(
    name: NameArgument,
    collection: Annotated[str, typer.Argument(help="The collection that it is to name; no alias.")],
    index: IndexOption,
    triton: Annotated[
        str,
        typer.Option(
            help="host:port of the Triton whose checkpoint made the collection's vectors, as clients reach it.",
            show_default="the one that clients are told of",
        ),
    ] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Make an alias or point it elsewhere, from one request to the next; the same command with the old name undoes it.

    With a Triton its encoder is asked for, and the alias stays as it was where the collection belongs to another.
    """

    async def run(catalog: SidecarCatalog) -> Alias | None:
        from resrank.client import AsyncResRankClient

        encoder = ""
        if triton:
            async with AsyncResRankClient(triton) as client:
                encoder = await client.encoder_sha256()
        return await catalog.set_alias(name, collection, triton=triton, encoder_sha256=encoder)

    previous = on_catalog(index, run)
    if output is Output.JSON:
        before = None if previous is None else {"collection": previous.collection, "triton": previous.triton}
        print_json({"alias": name, "collection": collection, "triton": triton, "previous": before})
        return
    print(f"{name} names {collection}" + (f" at {triton}" if triton else ""))
    if previous is not None and (previous.collection, previous.triton) != (collection, triton):
        old = ["resrank", "alias", "set", name, previous.collection, *index_arguments(index)]
        old += ["--triton", previous.triton] if previous.triton else []
        print(f"back to what it was: {visible(shlex.join(old))}")


@app.command("list", epilog="Example: `resrank alias list --index var/index --output json`")
def list_(index: IndexOption, output: OutputOption = Output.TEXT) -> None:
    """Print the aliases of an index."""
    found = on_catalog(index, lambda catalog: catalog.aliases())
    if output is Output.JSON:
        print_json([{"alias": one.name, "collection": one.collection, "triton": one.triton} for one in found])
        return
    if not found:
        print("no alias")
        return
    from rich.table import Table

    table = Table("alias", "collection", "Triton", box=None, header_style="bold", pad_edge=False)
    for one in found:
        table.add_row(one.name, one.collection, visible(one.triton) or "-")
    Terminal().print(table)


@app.command(epilog="Example: `resrank alias delete docs --index var/index`")
def delete(name: NameArgument, index: IndexOption) -> None:
    """Remove an alias; the collection that it names stays."""
    on_catalog(index, lambda catalog: catalog.delete_alias(name))
    print(f"deleted {name}")
