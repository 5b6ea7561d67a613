"""What a person sees of a run: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from resrank.training.development import DevelopmentScore

_LINE_EVERY_S = 30.0  # without a terminal, while texts are encoded


class RunProgress:
    """Shows stages, losses, scores, speed and the time that is left."""

    def __init__(self, console: Console) -> None:
        """Takes where to show it.

        Args:
            console: A quiet one shows nothing, which is for all processes but the first.
        """
        self._console = console
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal or console.quiet,
        )
        self._task: TaskID | None = None
        self._numbers: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Starts the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the bar away."""
        self._bar.stop()

    def note(self, sentence: str) -> None:
        """A line that stays."""
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def stage(self, name: str, steps: int, *, done: int) -> None:
        """A stage begins.

        Args:
            name: Which.
            steps: Its steps.
            done: Those of an earlier run.
        """
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=steps, completed=done, numbers="")
        self.note(f"{name}: {steps} steps" + (f", going on after step {done}" if done else ""))

    def step(self, done: int) -> None:
        """A step of the stage is done."""
        if self._task is not None:
            self._bar.update(self._task, completed=done)

    def losses(self, step: int, loss: float, lists_per_s: float) -> None:
        """New means.

        Args:
            step: Steps of the stage done.
            loss: Of the last steps.
            lists_per_s: Of all processes together, evaluations left out.
        """
        self._show(loss=f"loss {loss:.4f}", speed=f"{lists_per_s:.1f} lists/s")
        if not self._console.is_terminal:
            self.note(f"  step {step}: loss {loss:.4f}, {lists_per_s:.1f} lists/s")

    def development(self, step: int, score: DevelopmentScore, *, kept: bool) -> None:
        """A new development score.

        Args:
            step: Steps of the stage done.
            score: The score.
            kept: Whether it is the best so far, and above dense-start.
        """
        self._show(ndcg="nDCG@10 " + " ".join(f"{part.score:.4f}" for part in score.sets))
        self.note(f"  step {step}: {described(score)}" + (", kept" if kept else ""))

    def encoding(self, what: str) -> EncodingProgress:
        """Shows how many texts are encoded, until the context ends.

        Args:
            what: The texts.
        """
        return EncodingProgress(self._bar, self._console, what)

    def _show(self, **numbers: str) -> None:
        self._numbers.update(numbers)
        if self._task is not None:
            self._bar.update(self._task, numbers=" · ".join(self._numbers.values()))


def described(score: DevelopmentScore) -> str:
    """A score in words, with the name of each set where there are several."""
    return "; ".join(
        f"{f'{part.name} ' if len(score.sets) > 1 else ''}nDCG@10 {part.retrieved:.4f} in retrieved order, "
        f"{part.shuffled:.4f} shuffled (dense {part.dense:.4f})"
        for part in score.sets
    )


class EncodingProgress:
    """A bar of its own; calling it tells how many texts are done, and of how many."""

    def __init__(self, bar: Progress, console: Console, what: str) -> None:
        """Names what is encoded; see :meth:`RunProgress.encoding`."""
        self._bar = bar
        self._console = console
        self._what = what
        self._task: TaskID | None = None
        self._told = 0.0

    def __enter__(self) -> Self:
        """Adds the bar."""
        self._task = self._bar.add_task(self._what, total=None, numbers="")
        self._told = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the bar away."""
        if self._task is not None:
            self._bar.remove_task(self._task)

    def __call__(self, done: int, of: int) -> None:
        """So many texts are encoded.

        Args:
            done: Texts so far.
            of: All.
        """
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=of)
        if not self._console.is_terminal and time.monotonic() - self._told > _LINE_EVERY_S:
            self._told = time.monotonic()
            self._console.print(f"  {self._what}: {done} of {of}", markup=False, highlight=False)
