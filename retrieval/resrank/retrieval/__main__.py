"""``python -m resrank.retrieval``: runs one sidecar."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

from resrank.core.errors import InvalidInputError, ResRankError
from resrank.core.extras import install_command
from resrank.core.logs import LogFormat, LogLevel, log_to_stderr
from resrank.core.server_tls import server_tls
from resrank.core.signals import ignore_stops
from resrank.core.tracing import export_traces
from resrank.retrieval.settings import SidecarSettings
from resrank.retrieval.store_url import INDEX_VARIABLE, LOCAL, STORE_VARIABLE, StoreUrl

if __name__ == "__main__":
    # Until the server listens for it: an interrupt while something is imported ends the process and says nothing.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _package(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]


def _missing(error: ModuleNotFoundError) -> NoReturn:
    """Says what brings a package: the base install is the client alone, and has this module all the same."""
    sys.exit(f"resrank.retrieval: needs the Python package {_package(error)}: {install_command('retrieval')}")


try:
    import typer
except ModuleNotFoundError as error:
    _missing(error)

logger = logging.getLogger(__name__)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_EXTRA = {"faiss", "grpc_health", "grpc_reflection", "prometheus_client", "psutil", "pythonjsonlogger"}
"""What the retrieval extra brings."""

_PREFIX = "RESRANK_RETRIEVAL_"
_DEFAULTS = SidecarSettings(StoreUrl.local(Path()))


@app.command()
def main(
    context: typer.Context,
    store: Annotated[
        str,
        typer.Option(
            "--store",
            "--index",
            envvar=[STORE_VARIABLE, INDEX_VARIABLE],
            metavar="URL|DIR",
            help="Where the collections are: postgresql://USER:PASSWORD@HOST/DATABASE, milvus://HOST/DATABASE, or a "
            "folder, which is made if it does not exist (local:///DIR). A password is safe in RESRANK_STORE: everybody "
            "on a machine sees its commands' options.",
        ),
    ],
    host: Annotated[str, typer.Option(envvar=f"{_PREFIX}HOST", help="Address to listen on.")] = _DEFAULTS.host,
    port: Annotated[
        int, typer.Option(envvar=f"{_PREFIX}PORT", min=0, max=65535, help="Port; 0 lets the system choose.")
    ] = _DEFAULTS.port,
    socket: Annotated[
        Path | None,
        typer.Option(
            envvar=f"{_PREFIX}SOCKET",
            help="Unix domain socket to listen on too, for Triton's `search` model on this machine.",
        ),
    ] = _DEFAULTS.socket,
    dense_index: Annotated[
        str,
        typer.Option(envvar=f"{_PREFIX}DENSE_INDEX", help="FAISS index_factory string: Flat, HNSW32, …"),
    ] = _DEFAULTS.dense_index,
    dense_search_parameters: Annotated[
        str,
        typer.Option(
            envvar=f"{_PREFIX}DENSE_SEARCH_PARAMETERS",
            help="FAISS search-time parameters: nprobe=16, …",
        ),
    ] = _DEFAULTS.dense_search_parameters,
    dense_device: Annotated[
        str,
        typer.Option(
            envvar=f"{_PREFIX}DENSE_DEVICE",
            metavar="cpu|gpu|gpu:N",
            help="Where the vectors of a folder are searched; a GPU needs the extra retrieval-gpu.",
        ),
    ] = _DEFAULTS.dense_device,
    search_threads: Annotated[
        int, typer.Option(envvar=f"{_PREFIX}SEARCH_THREADS", min=1, help="Searches that run at once, one core each.")
    ] = _DEFAULTS.search_threads,
    max_inflight: Annotated[
        int,
        typer.Option(
            envvar=f"{_PREFIX}MAX_INFLIGHT", min=1, help="Requests admitted at once; more get RESOURCE_EXHAUSTED."
        ),
    ] = _DEFAULTS.max_inflight,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar=f"{_PREFIX}METRICS_PORT",
            min=0,
            max=65535,
            help="Port of the Prometheus metrics; 0 lets the system choose. None are shown without it.",
        ),
    ] = _DEFAULTS.metrics_port,
    metrics_host: Annotated[
        str,
        typer.Option(envvar=f"{_PREFIX}METRICS_HOST", help="Address of the metrics, which are never encrypted."),
    ] = _DEFAULTS.metrics_host,
    drain_s: Annotated[
        float,
        typer.Option(envvar=f"{_PREFIX}DRAIN_S", min=0, help="Seconds that requests in flight get at a stop."),
    ] = _DEFAULTS.drain_s,
    tls_certificate: Annotated[
        Path | None, typer.Option(envvar=f"{_PREFIX}TLS_CERTIFICATE", help="The port's certificate, a PEM file.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar=f"{_PREFIX}TLS_KEY", help="Its private key, a PEM file.")
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            envvar=f"{_PREFIX}TLS_CLIENT_CA",
            help="Authorities of callers' certificates, a PEM file; callers then need one (mutual TLS).",
        ),
    ] = None,
    bearer_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar=f"{_PREFIX}BEARER_KEY_FILE",
            help="File with the key that callers of the port must send, as `authorization: Bearer KEY`.",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar=f"{_PREFIX}INSECURE",
            help="Listen beyond loopback without TLS or without a key, metrics included.",
        ),
    ] = False,
    log_level: Annotated[
        LogLevel, typer.Option(envvar=f"{_PREFIX}LOG_LEVEL", help="The least that is told.", case_sensitive=False)
    ] = LogLevel.INFO,
    log_format: Annotated[
        LogFormat, typer.Option(envvar="RESRANK_LOG_FORMAT", help="Lines for people, or one JSON object a line.")
    ] = LogFormat.TEXT,
) -> None:
    """Serves the collections of one store over gRPC (resrank.retrieval.v1) until SIGTERM or SIGINT.

    Exit codes: 0 stopped as told, 1 cannot serve (the reason is on standard error), 2 wrong usage.
    """
    try:
        log_to_stderr(log_level, log_format)
        logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells of every instruction set it lacks
        from resrank.core.terminal import discard_output
        from resrank.retrieval.access import read_bearer_key
        from resrank.retrieval.local.dense import require_device
        from resrank.retrieval.local.index_kind import require_usable
        from resrank.retrieval.server import serve
    except ModuleNotFoundError as error:
        if _package(error) not in _EXTRA:
            raise
        _missing(error)

    try:
        url = StoreUrl.read(store)
        export_traces("resrank-retrieval")
        settings = SidecarSettings(
            store=url,
            host=host,
            port=port,
            socket=socket,
            dense_index=dense_index,
            dense_search_parameters=dense_search_parameters,
            dense_device=dense_device,
            search_threads=search_threads,
            max_inflight=max_inflight,
            metrics_host=metrics_host,
            metrics_port=metrics_port,
            drain_s=drain_s,
            tls=server_tls(tls_certificate, tls_key, tls_client_ca),
            bearer_key=None if bearer_key_file is None else read_bearer_key(bearer_key_file),
            insecure=insecure,
        )
        if url.scheme == LOCAL:
            require_usable(dense_index, dense_search_parameters)
        if dense_device != _DEFAULTS.dense_device:
            require_device(dense_device, dense_index)
    except InvalidInputError as error:
        print(f"resrank.retrieval: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    source = context.get_parameter_source("store")
    if url.password is not None and source is not None and source.name == "COMMANDLINE":
        logger.warning("everybody on this machine can read the password of --store: give the URL in RESRANK_STORE")
    try:
        asyncio.run(serve(settings))
        ignore_stops()
    except (ResRankError, OSError) as error:  # the second of the output, or of what the index lies on
        discard_output()
        print(f"resrank.retrieval: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
