"""What a run writes down while it goes: JSON lines and TensorBoard, the same values in both."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from resrank.core.durability import replace_file
from resrank.core.errors import TrainingError

TRAINING, DEVELOPMENT = "training", "development"
"""Kinds of records: means over some steps; a development score."""

Record = dict[str, Any]


class RunLog:
    """``log.jsonl`` and ``tensorboard/`` of a run.

    Every record has ``kind``, ``stage``, ``step`` (of the stage), ``total_step`` and ``time`` (Unix seconds).
    """

    def __init__(self, file: Path, tensorboard: Path, *, after: int | None = None) -> None:
        """Opens both for more records.

        Args:
            file: The JSON lines.
            tensorboard: Folder of event files.
            after: The step that the run goes on from: records of later ones, which are computed again, are dropped.
                None starts a new log.

        Raises:
            TrainingError: The log of the run that goes on is damaged.
        """
        if after is not None and file.is_file():
            kept = [json.dumps(record) + "\n" for record in read_log(file) if record["total_step"] <= after]
            replace_file(file, "".join(kept))
        self._file = file.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(tensorboard), purge_step=None if after is None else after + 1)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes both."""
        self._file.close()
        self._board.close()

    def write(self, kind: str, stage: str, step: int, total_step: int, values: Mapping[str, float]) -> None:
        """Adds one record.

        Args:
            kind: One of this module's.
            stage: Which stage runs.
            step: Its steps done.
            total_step: Steps of all stages done.
            values: Numbers by name; a ``/`` groups them in TensorBoard.

        Raises:
            OSError: The disk is full.
        """
        place = {"kind": kind, "stage": stage, "step": step, "total_step": total_step, "time": round(time.time(), 3)}
        self._file.write(json.dumps({**place, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, total_step)


def read_log(file: Path) -> Iterator[Record]:
    """Reads the records of a run.

    Args:
        file: ``log.jsonl``. A last line that was cut off, by a kill or a full disk, is passed over.

    Raises:
        TrainingError: A line is not a record.
    """
    lines = file.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                yield json.loads(line)
        except ValueError:
            if number == len(lines):
                return
            raise TrainingError(f"{file}, line {number}: not a record of a run's log") from None


class Meter:
    """Means of what each step reports, and the time that the steps took."""

    def __init__(self) -> None:
        """Starts empty."""
        self.clear()

    def clear(self) -> None:
        """Starts again."""
        self._sums: dict[str, float] = {}
        self.steps = 0
        self.seconds = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the time of the block."""
        started = time.monotonic()
        yield
        self.seconds += time.monotonic() - started

    def add(self, values: Mapping[str, float]) -> None:
        """Adds a step, which has the same names as the steps before it."""
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
        self.steps += 1

    def means(self) -> dict[str, float]:
        """The mean of each value over the steps."""
        return {name: total / self.steps for name, total in self._sums.items()}
