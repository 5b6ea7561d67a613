"""``resrank serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resrank.core.terminal import Terminal
from resrank.stack.cli.options import (
    HostOption,
    IndexOption,
    MetricsPortOption,
    RetrievalPortOption,
    RetrievalSocketOption,
    TritonPortOption,
)
from resrank.stack.ports import METRICS_PORT, RETRIEVAL_PORT, TRITON_PORT

app = typer.Typer(rich_markup_mode="markdown")


@app.command(
    epilog="Examples: `resrank serve repository --index index` · "
    "`RESRANK_TRITON_PORT=9001 resrank serve repository --log-dir /var/log/resrank`"
)
def serve(
    repository: Annotated[
        Path,
        typer.Argument(envvar="RESRANK_REPOSITORY", help="Model repository, as `resrank export` writes it."),
    ],
    index: IndexOption = Path("index"),
    host: HostOption = "127.0.0.1",
    triton_port: TritonPortOption = TRITON_PORT,
    metrics_port: MetricsPortOption = METRICS_PORT,
    retrieval_port: RetrievalPortOption = RETRIEVAL_PORT,
    retrieval_socket: RetrievalSocketOption = None,
    log_dir: Annotated[
        Path | None,
        typer.Option(envvar="RESRANK_LOG_DIR", help="Keep triton.log and retrieval.log in this folder too."),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="First measure how many engines, threads and batches suit this CPU (2 to 3 minutes)."
        ),
    ] = False,
) -> None:
    """Run Triton and the retrieval sidecar on this machine until Ctrl-C or SIGTERM.

    A repository that this machine cannot serve is refused before anything starts; `resrank doctor REPOSITORY` says
    everything that is in the way.

    What `--tune` finds is kept below `~/.cache/resrank/tuned` (`XDG_CACHE_HOME`) for this repository and this machine,
    and applied by every later `serve` of the two; the repository itself is never changed.

    Both logs are followed here. Nothing is restarted: when one of the two dies, the other is stopped, and the
    command fails with the last lines of the dead one's log.
    """
    from resrank.stack.local_stack import LocalStack
    from resrank.stack.serve import log_printer, tuned_settings
    from resrank.stack.serve import serve as run

    console = Terminal()
    settings = tuned_settings(repository, console, tune=tune)
    stack = LocalStack(
        repository,
        index,
        host=host,
        triton_port=triton_port,
        metrics_port=metrics_port,
        retrieval_port=retrieval_port,
        retrieval_socket=retrieval_socket,
        log_dir=log_dir,
        on_line=log_printer(console),
        tuned=settings,
    )
    run(stack, console)
