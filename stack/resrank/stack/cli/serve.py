"""``resrank serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resrank.core.terminal import Terminal
from resrank.core.tracing import ENDPOINT_VARIABLE
from resrank.retrieval.store_url import StoreUrl
from resrank.stack.cli.options import (
    HostOption,
    IndexOption,
    JoinedSidecarOption,
    MetricsPortOption,
    RetrievalMetricsPortOption,
    RetrievalPortOption,
    RetrievalSocketOption,
    TritonPortOption,
    refuse_beside_joined,
)
from resrank.stack.ports import METRICS_PORT, RETRIEVAL_METRICS_PORT, RETRIEVAL_PORT, TRITON_PORT

app = typer.Typer(rich_markup_mode="markdown")


@app.command(
    epilog="Examples: `resrank serve repository --index index` · "
    "`RESRANK_TRITON_PORT=9001 resrank serve repository --log-dir /var/log/resrank`"
)
def serve(
    context: typer.Context,
    repository: Annotated[
        Path,
        typer.Argument(envvar="RESRANK_REPOSITORY", help="Model repository, as `resrank export` writes it."),
    ],
    index: IndexOption = StoreUrl.local(Path("index")),  # noqa: B008  # frozen
    host: HostOption = "127.0.0.1",
    triton_port: TritonPortOption = TRITON_PORT,
    metrics_port: MetricsPortOption = METRICS_PORT,
    retrieval_port: RetrievalPortOption = RETRIEVAL_PORT,
    retrieval_metrics_port: RetrievalMetricsPortOption = RETRIEVAL_METRICS_PORT,
    retrieval_socket: RetrievalSocketOption = None,
    retrieval_url: JoinedSidecarOption = None,
    http: Annotated[
        int | None,
        typer.Option(
            "--http",
            envvar="RESRANK_HTTP_PORT",
            min=1,
            max=65535,
            metavar="PORT",
            help="Serve HTTP on this port, too: the gateway, and its playground at `/`.",
            show_default="no HTTP",
        ),
    ] = None,
    http_keys: Annotated[
        Path | None,
        typer.Option(envvar="RESRANK_HTTP_KEYS", help="File of the gateway's API keys (`resrank gateway key`)."),
    ] = None,
    tls_certificate: Annotated[
        Path | None,
        typer.Option(envvar="RESRANK_TLS_CERTIFICATE", help="Certificate of all ports, a PEM file."),
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar="RESRANK_TLS_KEY", help="Its private key, a PEM file.")] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            envvar="RESRANK_TLS_CLIENT_CA",
            help="Authorities of callers' certificates, a PEM file; callers then need one (mutual TLS).",
        ),
    ] = None,
    bearer_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="RESRANK_BEARER_KEY_FILE",
            help="File with the key that callers of the sidecar must send, as `authorization: Bearer KEY`.",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar="RESRANK_INSECURE",
            help="Listen beyond loopback without TLS or to callers without a certificate.",
        ),
    ] = False,
    log_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="RESRANK_LOG_DIR", help="Keep triton.log, retrieval.log and gateway.log in this folder too."
        ),
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            envvar=ENDPOINT_VARIABLE,
            help="Collector that takes traces over OTLP/HTTP, http://HOST:4318; OpenTelemetry's other variables hold, "
            "too. Without it nothing is traced.",
        ),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="First measure how many engines, threads and batches suit this CPU (2 to 3 minutes)."
        ),
    ] = False,
) -> None:
    """Run Triton, the retrieval sidecar and, with `--http`, the gateway on this machine until Ctrl-C or SIGTERM.

    With `--retrieval-url` a second checkpoint is served beside a sidecar that runs already: `search` and the gateway
    ask that one, which stays when this ends. It must have a collection of this checkpoint's encoder, or an empty one.

    A repository that this machine cannot serve is refused before anything starts; `resrank doctor REPOSITORY` says
    everything that is in the way.

    What `--tune` finds is kept below `~/.cache/resrank/tuned` (`XDG_CACHE_HOME`) for this repository and this machine,
    and applied by every later `serve` of the two; the repository itself is never changed.

    All logs are followed here. A start of Triton that stalls or crashes is begun once more. What was ready is not:
    when a server or the process of a model dies or is stopped, all is ended, and the command fails with the last lines
    of its log. At a signal requests under way get 20 seconds to
    finish, at a second one none.
    """
    from resrank.core.server_tls import server_tls
    from resrank.stack.local_stack import LocalStack
    from resrank.stack.serve import log_printer, tuned_settings
    from resrank.stack.serve import serve as run
    from resrank.stack.trace_export import TraceExport

    if retrieval_url is not None:
        own = ("index", "retrieval_port", "retrieval_metrics_port", "retrieval_socket", "bearer_key_file")
        refuse_beside_joined(context, *own)
    console = Terminal()
    settings = tuned_settings(repository, console, tune=tune)
    stack = LocalStack(
        repository,
        index,
        host=host,
        triton_port=triton_port,
        metrics_port=metrics_port,
        retrieval_port=retrieval_port,
        retrieval_metrics_port=retrieval_metrics_port,
        retrieval_socket=retrieval_socket,
        joined=retrieval_url,
        http=http is not None,
        http_port=http,
        http_keys=http_keys,
        tls=server_tls(tls_certificate, tls_key, tls_client_ca),
        bearer_key_file=bearer_key_file,
        insecure=insecure,
        log_dir=log_dir,
        trace_export=TraceExport.read(otlp_endpoint),
        on_line=log_printer(console),
        tuned=settings,
    )
    run(stack, console)
