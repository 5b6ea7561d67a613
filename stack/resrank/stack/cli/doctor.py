"""``resrank doctor``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from resrank.core.terminal import Terminal, print_json
from resrank.stack.cli.options import (
    HostOption,
    JoinedSidecarOption,
    MetricsPortOption,
    Output,
    OutputOption,
    RetrievalMetricsPortOption,
    RetrievalPortOption,
    TritonPortOption,
    refuse_beside_joined,
)
from resrank.stack.ports import (
    METRICS_PORT,
    RETRIEVAL_METRICS_PORT,
    RETRIEVAL_PORT,
    TRITON_PORT,
    check_distinct,
    check_host,
)

app = typer.Typer(rich_markup_mode="markdown")


@app.command(
    epilog="Examples: `resrank doctor` · `resrank doctor repository` · `resrank doctor --output json | jq .ok`"
)
def doctor(
    context: typer.Context,
    repository: Annotated[
        Path | None,
        typer.Argument(help="Compare this model repository with the machine too, file by file (seconds for each GB)."),
    ] = None,
    host: HostOption = "127.0.0.1",
    triton_port: TritonPortOption = TRITON_PORT,
    metrics_port: MetricsPortOption = METRICS_PORT,
    retrieval_port: RetrievalPortOption = RETRIEVAL_PORT,
    retrieval_metrics_port: RetrievalMetricsPortOption = RETRIEVAL_METRICS_PORT,
    retrieval_url: JoinedSidecarOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check what this machine has for serving: one line each, with the remedy. Exits with 1 if anything is missing.

    With `--retrieval-url`, whether that sidecar can be joined, in place of what one of its own would need.
    With a repository, one line more for each of its engines: whether this machine can run it, and why not.
    """
    from resrank.stack.check import Status
    from resrank.stack.doctor import examine
    from resrank.stack.running_sidecar import RunningSidecar

    check_host(host)
    ports = [triton_port, metrics_port]
    sidecar = None
    if retrieval_url is None:
        ports += [retrieval_port, retrieval_metrics_port]
    else:
        refuse_beside_joined(context, "retrieval_port", "retrieval_metrics_port")
        sidecar = RunningSidecar.joined(retrieval_url)
    check_distinct(*ports)
    checks = examine(host, ports, repository, sidecar)
    ok = all(check.status is not Status.FAILED for check in checks)
    if output is Output.JSON:
        print_json({"ok": ok, "checks": [asdict(check) for check in checks]})
    else:
        console = Terminal(highlight=False)
        marks = {Status.OK: ("✓", "green"), Status.FAILED: ("✗", "red"), Status.ABSENT: ("–", "yellow")}
        for check in checks:
            mark, colour = marks[check.status]
            console.print(Text.assemble((mark, colour), f" {check.name}: {check.detail}"), soft_wrap=True)
            if check.remedy:
                console.print(Text(f"    {check.remedy}"), soft_wrap=True)
    if not ok:
        raise typer.Exit(1)
