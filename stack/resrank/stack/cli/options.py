"""Options that several sub-commands share, each with its environment twin."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from resrank.core.errors import InvalidInputError
from resrank.core.names import RETRIEVAL_SOCKET_VARIABLE, RETRIEVAL_URL_VARIABLE
from resrank.retrieval.store_url import INDEX_VARIABLE, LOCAL, STORE_VARIABLE, StoreUrl


class Output(StrEnum):
    """What a command prints: text for people, JSON for programs."""

    TEXT = "text"
    JSON = "json"


HostOption = Annotated[
    str,
    typer.Option(
        "--host",
        envvar="RESRANK_HOST",
        help="Address to listen on, IPv6 with brackets or without. Beyond loopback, TLS is required.",
    ),
]
TritonPortOption = Annotated[
    int, typer.Option("--triton-port", envvar="RESRANK_TRITON_PORT", min=1, max=65535, help="Triton's gRPC port.")
]
MetricsPortOption = Annotated[
    int,
    typer.Option("--metrics-port", envvar="RESRANK_METRICS_PORT", min=1, max=65535, help="Triton's Prometheus port."),
]
RetrievalPortOption = Annotated[
    int,
    typer.Option("--retrieval-port", envvar="RESRANK_RETRIEVAL_PORT", min=1, max=65535, help="The sidecar's port."),
]
RetrievalMetricsPortOption = Annotated[
    int,
    typer.Option(
        "--retrieval-metrics-port",
        envvar="RESRANK_RETRIEVAL_METRICS_PORT",
        min=1,
        max=65535,
        help="The sidecar's Prometheus port.",
    ),
]
RetrievalSocketOption = Annotated[
    Path | None,
    typer.Option(
        "--retrieval-socket",
        envvar=RETRIEVAL_SOCKET_VARIABLE,
        help="Unix domain socket between Triton and the sidecar; by default one in a folder of its own.",
        show_default=False,
    ),
]


def read_store(given: str | StoreUrl) -> StoreUrl:
    """Reads the option below; a default is read already."""
    try:
        return given if isinstance(given, StoreUrl) else StoreUrl.read(given)
    except InvalidInputError as error:
        # In words of its own: those for a ValueError would repeat what was given, a password included.
        raise typer.BadParameter(error.problem) from None


IndexOption = Annotated[
    StoreUrl,
    typer.Option(
        "--index",
        "--store",
        envvar=[STORE_VARIABLE, INDEX_VARIABLE],
        parser=read_store,
        metavar="DIR|URL",
        help="Index folder, or the URL of a store on another server. A password is safe in RESRANK_STORE alone.",
    ),
]
CollectionOption = Annotated[
    str,
    typer.Option(
        "--collection",
        envvar="RESRANK_COLLECTION",
        help="Which collection of the index, by name or alias.",
        show_default="the default one",
    ),
]
TritonUrlOption = Annotated[
    str, typer.Option("--triton-url", envvar="RESRANK_TRITON_URL", help="host:port of Triton's gRPC endpoint.")
]
RetrievalUrlOption = Annotated[
    str, typer.Option("--retrieval-url", envvar=RETRIEVAL_URL_VARIABLE, help="host:port of the retrieval sidecar.")
]
# Without the variable, which clients have: a sidecar is joined by those who say so.
JoinedSidecarOption = Annotated[
    str | None,
    typer.Option(
        "--retrieval-url",
        metavar="HOST:PORT",
        help="A sidecar that runs already on this machine, or its socket, `unix:PATH`: none is started.",
        show_default="a sidecar of its own",
    ),
]
OutputOption = Annotated[Output, typer.Option("--output", help="For people or for programs.")]


def refuse_beside_joined(context: typer.Context, *names: str) -> None:
    """Refuses options of a sidecar of one's own that stand beside ``--retrieval-url``; variables give way to it.

    Args:
        context: Of the command.
        names: Its parameters.

    Raises:
        typer.BadParameter: One stands there.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "--index or --store" if name == "index" else f"--{name.replace('_', '-')}"
            raise typer.BadParameter(f"leave out {option}, since --retrieval-url names a sidecar that runs already")


def index_arguments(index: StoreUrl) -> list[str]:
    """``--index`` of a command to be copied: none for a URL with a hidden password, which the variable has."""
    return ["--index", str(index)] if index.scheme == LOCAL or str(index) == index.secret else []
