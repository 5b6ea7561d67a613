"""``resrank traces``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from resrank.core.terminal import Terminal

app = typer.Typer(rich_markup_mode="markdown")

_QUIET_S = 6.0
"""Longer than the five seconds after which processes send what they have."""


@app.command(
    epilog="Example: `resrank traces` · `resrank serve repository --otlp-endpoint http://127.0.0.1:4318` · "
    '`OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 resrank search "who wrote it?"`'
)
def traces(
    port: Annotated[
        int, typer.Option(envvar="RESRANK_TRACES_PORT", min=0, max=65535, help="Port; 0 lets the system choose.")
    ] = 4318,
) -> None:
    """Take traces over OTLP/HTTP on loopback and print each as a tree, until Ctrl-C.

    Shows where the time of a request goes without a tracing system. A trace is printed when nothing more of it has come
    for six seconds. Nothing is kept.
    """
    from resrank.stack.trace_collector import TraceCollector
    from resrank.stack.trace_tree import trace_tree

    console = Terminal()
    with TraceCollector(port=port) as collector:
        console.print(f"waiting for traces at {collector.endpoint}", style="dim", highlight=False)
        while True:
            for trace_id, spans in collector.take_quiet(_QUIET_S):
                console.print(trace_tree(trace_id, spans), soft_wrap=True)
            time.sleep(0.2)
