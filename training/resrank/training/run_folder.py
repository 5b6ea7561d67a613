"""The folder of one run: what lies where, and when it may be written to."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from resrank.core.durability import replace_file
from resrank.core.errors import TrainingError
from resrank.training.config import TrainConfig

CONFIG_FILE = "config.yaml"
RESULT_FILE = "result.json"


class Opening(StrEnum):
    """What to do with a folder that a run has been in."""

    NEW = "new"
    """Refuse it."""

    RESUME = "resume"
    """Go on where the run stopped."""

    FORCE = "force"
    """Remove what the run left, and start again."""


class RunFolder:
    """``OUT/`` of a run.

    Attributes:
        path: The folder.
        start: The full checkpoint that training starts from, as long as the run goes on.
        start_adapter: The adapter checkpoint that ``start`` was merged from, if it was: what is frozen stays as it is
            there.
        checkpoint: The best checkpoint so far.
        state: The states to resume from.
        log: One JSON object per line.
        tensorboard: Event files.
        curves: The curves as an image.
        config: The config with all defaults written out.
        result: How the run ended; there once it is finished.
    """

    def __init__(self, path: Path) -> None:
        """Names the parts; touches nothing."""
        self.path = path
        self.start = path / "start"
        self.start_adapter = path / "start-adapter"
        self.checkpoint = path / "checkpoint"
        self.state = path / "state"
        self.log = path / "log.jsonl"
        self.tensorboard = path / "tensorboard"
        self.curves = path / "curves.png"
        self.config = path / CONFIG_FILE
        self.result = path / RESULT_FILE
        self._previous = path / ".checkpoint.previous"
        self._fresh = path / ".checkpoint.new"

    def check(self, opening: Opening) -> None:
        """Says whether a run may be in this folder; changes nothing.

        Raises:
            TrainingError: The folder holds a run, or something else, that would be overwritten; or there is nothing
                to resume.
        """
        if opening is Opening.RESUME:
            if self.result.is_file():
                raise TrainingError(f"{self.path}: the run in it is finished; --force replaces it")
            if not self.config.is_file():
                raise TrainingError(f"{self.path}: holds no run to resume")
            return
        # A start checkpoint alone, or a part of one, is what an attempt leaves behind that failed before training.
        started = {self.start, self.start_adapter, *self._partial()}
        if not self.path.exists() or (self.path.is_dir() and set(self.path.iterdir()) <= started):
            return
        if not self.config.is_file():
            raise TrainingError(f"{self.path}: exists and is not the folder of a run; choose another with --out")
        if opening is Opening.NEW:
            if self.result.is_file():
                raise TrainingError(f"{self.path}: holds a finished run; --force replaces it")
            raise TrainingError(f"{self.path}: holds an unfinished run; --resume goes on, --force starts again")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs out of the folder, from before its start is made to the run's end.

        Raises:
            TrainingError: Another run is in it.
            OSError: The folder cannot be made.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(f"{self.path}: another run is in it; choose another with --out") from None
            yield
        finally:
            os.close(folder)
            with suppress(OSError):  # where nothing came of it
                self.path.rmdir()

    def open(self, opening: Opening, config: TrainConfig) -> None:
        """Prepares the folder; to be called once config, start and data are known to be right.

        Raises:
            TrainingError: As for :meth:`check`.
            OSError: The folder cannot be written.
        """
        self.check(opening)
        for folder in (self._fresh, *self._partial()):  # killed while it was written
            shutil.rmtree(folder, ignore_errors=True)
        if opening is Opening.RESUME:
            if self._previous.is_dir():  # killed while the checkpoint was replaced
                if self.checkpoint.is_dir():
                    shutil.rmtree(self._previous)
                else:
                    self._previous.rename(self.checkpoint)
            return
        for folder in (self.checkpoint, self._previous, self.state, self.tensorboard):
            if folder.is_dir():
                shutil.rmtree(folder)
        for file in (self.log, self.curves, self.result):
            file.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        self.config.write_text(text, encoding="utf-8")

    def replace_checkpoint(self, write: Callable[[Path], None]) -> None:
        """Puts a new checkpoint in the place of the last one, which stays until the new one is complete.

        Args:
            write: Makes the folder that it is given.
        """
        shutil.rmtree(self._fresh, ignore_errors=True)
        write(self._fresh)
        if self.checkpoint.exists():
            self.checkpoint.rename(self._previous)
        self._fresh.rename(self.checkpoint)
        shutil.rmtree(self._previous, ignore_errors=True)

    def _partial(self) -> list[Path]:
        """Checkpoints that a killed process was writing, under the names of :func:`written_aside` and of states."""
        names = (self.start.name, self.start_adapter.name, self._fresh.name)
        beside = [path for name in names for path in self.path.glob(f".{name}.*.partial")]
        return [*beside, *self.state.glob(".*.partial")]

    def finish(self, result: dict[str, Any]) -> None:
        """Marks the run as finished and removes what only a running one needs.

        Args:
            result: What ``result.json`` shall say.
        """
        replace_file(self.result, json.dumps(result, indent=2) + "\n")
        for folder in (self.start, self.start_adapter):
            shutil.rmtree(folder, ignore_errors=True)
