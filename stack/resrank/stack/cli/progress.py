"""How far a long command is, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from resrank.core.terminal import Terminal

if TYPE_CHECKING:
    from resrank.core.progress import Notify, Progress


@contextmanager
def shown_progress(console: Terminal) -> Iterator[tuple[Notify, Progress]]:
    """Gives what tells of each step, and how far it is.

    Args:
        console: Of standard error, so that what a command prints can be piped.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bars = Bars(*columns, console=console, transient=True)
    current: dict[str, TaskID] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in current:
            for task in current.values():
                bars.remove_task(task)
            current.clear()
            current[what] = bars.add_task(what, total=total)
            bars.start()
        bars.update(current[what], completed=done, total=total)

    try:
        yield lambda step: console.print(f"{step} …", style="dim", markup=False), progress
    finally:
        bars.stop()
