"""``resrank serve``: the local stack in the foreground, until a signal or the death of a process ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from resrank.core.errors import StackError
from resrank.core.names import Model
from resrank.core.terminal import FullWidth, visible
from resrank.stack.local_stack import LocalStack, OnLine
from resrank.stack.running_sidecar import RunningSidecar
from resrank.stack.sidecar_process import SidecarProcess

if TYPE_CHECKING:
    from resrank.stack.tuning.choice import Choice, Setting
    from resrank.stack.tuning.settings import TunedSettings

_STYLES = {"triton": "green", "retrieval": "cyan", "gateway": "magenta"}


def log_printer(console: Console) -> OnLine:
    """Prints each line of a process's log behind the name of the process."""

    def print_line(name: str, line: str) -> None:
        console.print(Text.assemble((f"{name:>9} │ ", _STYLES[name]), visible(line)), soft_wrap=True)

    return print_line


def tuned_settings(repository: Path, console: Console, *, tune: bool) -> TunedSettings | None:
    """The settings to serve a repository with.

    Args:
        repository: Model repository as ``resrank export`` writes it.
        console: Where is printed what is measured, and that there are settings.
        tune: Whether to measure now.

    Returns:
        None where it was never tuned on this machine.

    Raises:
        StackError: It cannot be tuned, or the file of its settings is damaged.
    """
    from resrank.stack.tuning.settings import read_settings

    if not tune:
        settings = read_settings(repository)
        if settings is not None:
            console.print(f"tuned for this machine: {_describe(settings)}", style="dim", highlight=False)
        return settings
    from resrank.stack.tuning.tune import tune as measure

    choices, settings, file = measure(repository, lambda step: console.print(f"{step} …", style="dim", markup=False))
    console.print(FullWidth(tuning_table(choices)), crop=False)
    console.print(f"serving with {_describe(settings)}; kept in {file}", highlight=False, soft_wrap=True)
    return settings


def tuning_table(choices: Mapping[Model, Choice]) -> Table:
    """What was measured, one line a setting."""
    table = Table(title="Tuning", title_justify="left")
    for title in ("model", "engines", "threads", "rows in a call", "rows/s", "lone row, ms", ""):
        table.add_column(title, justify="left" if title in ("model", "") else "right")
    for model, choice in choices.items():
        for setting, sample in choice.samples.items():
            table.add_row(
                model.value,
                str(setting.engines),
                str(setting.threads),
                str(setting.rows),
                f"{sample.rows_per_s:.2f}",
                f"{sample.lone_ms:.1f}",
                _remark(choice, setting),
            )
    return table


def _remark(choice: Choice, setting: Setting) -> str:
    words = []
    if setting == choice.default:
        words.append("default")
    if setting == choice.finalist:
        gains = " ".join(f"{gain:.2f}" for gain in choice.gains)
        words.append(f"final against the default: x {gains}")
    if setting == choice.chosen:
        words.append("chosen")
    return ", ".join(words)


def _describe(settings: TunedSettings) -> str:
    return "; ".join(
        f"{model.value} {chosen.engines} x {chosen.threads} threads, {chosen.rows} rows in a call"
        for model, chosen in settings.models.items()
    )


def serve(stack: LocalStack, console: Console) -> None:
    """Runs the stack until SIGINT or SIGTERM, then drains and stops it.

    Args:
        stack: A stack that was not started yet.
        console: Where the endpoints are printed.

    Raises:
        StackError: A process could not be started, ended by itself, or crashed while it was stopped. Both are stopped
            before this is raised.
    """
    with _stop_signals() as (stop, hurry):
        try:
            stack.start()
            if stack.wait_ready(stop):
                _print_endpoints(stack, console)
                stack.watch(stop)
        finally:
            console.print("stopping …", style="dim")
            remarks = stack.stop(hurry=hurry)
    if remarks:
        raise StackError("the stop was not clean: " + "; ".join(remarks))
    console.print("stopped", style="dim")


def _print_endpoints(stack: LocalStack, console: Console) -> None:
    console.print("ready", style="bold green")
    gateway = () if stack.gateway is None else (("Gateway and playground", stack.gateway.url),)
    for name, address in (
        ("Triton (gRPC)", stack.triton.grpc_address),
        ("Triton metrics", f"http://{stack.triton.metrics_address}/metrics"),
        *_sidecar_lines(stack.sidecar),
        *(() if stack.trace_export is None else (("Traces go to", stack.trace_export.url),)),
        *gateway,
    ):
        console.print(f"  {name:<26}{address}", highlight=False)


def _sidecar_lines(sidecar: SidecarProcess | RunningSidecar) -> list[tuple[str, str]]:
    if isinstance(sidecar, RunningSidecar):
        return [("Retrieval sidecar, joined", sidecar.address)]
    return [
        ("Retrieval sidecar (gRPC)", sidecar.address),
        ("  and for Triton", f"unix:{sidecar.socket}"),
        ("Sidecar metrics", f"http://{sidecar.metrics_address}/metrics"),
    ]


@contextmanager
def _stop_signals() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Events that the first and the second SIGINT or SIGTERM set instead of what they did before."""
    stop, hurry = threading.Event(), threading.Event()

    def request_stop(number: int, frame: FrameType | None) -> None:
        (hurry if stop.is_set() else stop).set()

    before = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop, hurry
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
