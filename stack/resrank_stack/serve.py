"""``resrank serve``: the local stack in the foreground, until a signal or the death of a process ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.text import Text

from resrank_stack.local_stack import LocalStack, OnLine

_STYLES = {"triton": "green", "retrieval": "cyan"}


def log_printer(console: Console) -> OnLine:
    """Prints each line of a process's log behind the name of the process."""

    def print_line(name: str, line: str) -> None:
        console.print(Text.assemble((f"{name:>9} │ ", _STYLES[name]), line), soft_wrap=True)

    return print_line


def serve(stack: LocalStack, console: Console) -> None:
    """Runs the stack until SIGINT or SIGTERM, then drains and stops it.

    Args:
        stack: A stack that was not started yet.
        console: Where the endpoints are printed.

    Raises:
        StackError: A process could not be started, or ended by itself. Both are stopped before this is raised.
    """
    with _stop_signals() as stop:
        try:
            stack.start()
            if stack.wait_ready(stop):
                _print_endpoints(stack, console)
                stack.watch(stop)
        finally:
            console.print("stopping …", style="dim")
            stack.stop()
    console.print("stopped", style="dim")


def _print_endpoints(stack: LocalStack, console: Console) -> None:
    console.print("ready", style="bold green")
    for name, address in (
        ("Triton (gRPC)", stack.triton.grpc_address),
        ("Triton metrics", f"http://{stack.triton.metrics_address}/metrics"),
        ("Retrieval sidecar (gRPC)", stack.sidecar.address),
        ("  and for Triton", f"unix:{stack.sidecar.socket}"),
    ):
        console.print(f"  {name:<26}{address}", highlight=False)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set instead of what they did before."""
    stop = threading.Event()

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
