"""``resrank doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from resrank.stack.cli.options import (
    HostOption,
    MetricsPortOption,
    Output,
    OutputOption,
    RetrievalPortOption,
    TritonPortOption,
)
from resrank.stack.ports import METRICS_PORT, RETRIEVAL_PORT, TRITON_PORT

app = typer.Typer(rich_markup_mode="markdown")


@app.command(
    epilog="Examples: `resrank doctor` · `resrank doctor repository` · `resrank doctor --output json | jq .ok`"
)
def doctor(
    repository: Annotated[
        Path | None,
        typer.Argument(help="Compare this model repository with the machine too, file by file (seconds for each GB)."),
    ] = None,
    host: HostOption = "127.0.0.1",
    triton_port: TritonPortOption = TRITON_PORT,
    metrics_port: MetricsPortOption = METRICS_PORT,
    retrieval_port: RetrievalPortOption = RETRIEVAL_PORT,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check what this machine has for serving: one line each, with the remedy. Exits with 1 if anything is missing.

    With a repository, one line more for each of its engines: whether this machine can run it, and why not.
    """
    from resrank.stack.check import Status
    from resrank.stack.doctor import examine

    checks = examine(host, (triton_port, metrics_port, retrieval_port), repository)
    ok = all(check.status is not Status.FAILED for check in checks)
    if output is Output.JSON:
        typer.echo(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        marks = {Status.OK: ("✓", "green"), Status.FAILED: ("✗", "red"), Status.ABSENT: ("–", "yellow")}
        for check in checks:
            mark, colour = marks[check.status]
            typer.echo(f"{typer.style(mark, fg=colour)} {check.name}: {check.detail}")
            if check.remedy:
                typer.echo(f"    {check.remedy}")
    if not ok:
        raise typer.Exit(1)
