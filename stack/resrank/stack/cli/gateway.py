"""``resrank gateway``: HTTP in front of Triton and the sidecar."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode="markdown", invoke_without_command=True)

_PREFIX = "RESRANK_GATEWAY_"


@app.callback(
    epilog="Examples: `resrank gateway --retrieval-url localhost:8003` · `resrank gateway --config gateway.yaml` · "
    "`resrank gateway key search-team --file keys`"
)
def gateway(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(envvar=f"{_PREFIX}CONFIG", help="YAML with any setting; variables and options go before it."),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on. Beyond loopback, TLS and keys are wanted.", show_default="127.0.0.1"),
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on.", show_default="8080")] = None,
    triton_url: Annotated[
        str | None, typer.Option(help="host:port of Triton's gRPC endpoint.", show_default="localhost:8001")
    ] = None,
    retrieval_url: Annotated[
        str | None, typer.Option(help="host:port of the retrieval sidecar, for `document_ids`.", show_default="none")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="File of API keys; without one everybody may call.", show_default="none")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="The port's certificate, a PEM file.", show_default="none")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, a PEM file.", show_default="none")] = None,
    on_failure: Annotated[
        str | None,
        typer.Option(
            help="`error`, or `retrieval_order`: what to answer while the models are down, full or late.",
            show_default="error",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without TLS or without keys.")
    ] = False,
) -> None:
    """Serve rerank, search and embeddings over HTTP, in the schemas of Cohere, Jina, TEI, NIM, Weaviate and OpenAI.

    Runs until Ctrl-C or SIGTERM; requests under way then get 20 seconds. Every setting has a variable, its name after
    `RESRANK_GATEWAY_`, and a field in the file of `--config`: limits, model names, timeouts, certificates.
    """
    if ctx.invoked_subcommand is not None:
        return
    from resrank.gateway.server import serve
    from resrank.gateway.settings import read_settings

    given = {
        "host": host,
        "port": port,
        "triton": triton_url,
        "retrieval": retrieval_url,
        "keys": keys,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "on_failure": on_failure,
        "insecure": insecure or None,
    }
    serve(read_settings(config, **{name: value for name, value in given.items() if value is not None}))


@app.command(epilog="Example: `resrank gateway key search-team --file keys`")
def key(
    name: Annotated[str, typer.Argument(help="Whose it is; the log names it.")],
    file: Annotated[
        Path, typer.Option("--file", envvar=f"{_PREFIX}KEYS", help="File of digests; made where it is missing.")
    ],
) -> None:
    """Make an API key: print it once, and add its digest to the file. A running gateway takes it within a second.

    Removing its line takes a key back.
    """
    from resrank.gateway.keys import add_key

    typer.echo(add_key(file, name))
