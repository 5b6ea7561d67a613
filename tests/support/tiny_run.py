"""A whole training run on a tiny random checkpoint, in seconds."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from resrank.training.config import TrainConfig
from resrank.training.config_file import parse_config
from resrank.training.development import DevelopmentScore, SetScore
from resrank.training.logs import read_log
from resrank.training.processes import Processes
from resrank.training.progress import RunProgress
from resrank.training.run_folder import RunFolder
from resrank.training.sources import DevelopmentSet, Source, TrainingData
from resrank.training.state import Progress
from resrank.training.trainable import TrainableResRank
from resrank.training.trainer import Trainer
from support.tiny_training import tiny_lists

_SMALL = {"lists_per_step": 4, "steps": 4}


def tiny_data(lists: int = 12) -> TrainingData:
    """Training and development lists that share no question."""
    made = tiny_lists(lists + 4)
    return TrainingData(
        (Source("tiny", 1.0, tuple(made[:lists])),), (DevelopmentSet("tiny development", tuple(made[lists:])),)
    )


def tiny_config(output: Path, **sections: Any) -> TrainConfig:
    """A config of both stages; ``sections`` replace its top-level fields."""
    fields: dict[str, Any] = {
        "name": "tiny-run",
        "output": str(output),
        "start": {"checkpoint": "not read by the trainer"},
        "data": {
            "train": [{"kind": "listwise", "path": "not read by the trainer"}],
            "development": [{"hold_back": 1}],
            "candidates": {"min_passages": 2, "max_passages": 4},
        },
        "model": {"compute": {"precision": "fp32"}},
        "stages": {"reranker_alignment": dict(_SMALL), "joint": dict(_SMALL)},
        "development": {"every_steps": 2, "candidates": 4},
        "checkpoints": {"every_steps": 2},
        "logging": {"every_steps": 1},
    }
    return parse_config({**fields, **sections})


def one_set(retrieved: float, shuffled: float, *, dense: float, name: str = "tiny development") -> DevelopmentScore:
    """A score of one development set."""
    return DevelopmentScore((SetScore(name, retrieved, shuffled, dense, lists=4),))


class RecordingWriter:
    """Writes a folder that only tells what it was called with.

    Attributes:
        kept: The scores of all checkpoints written, in order.
    """

    def __init__(self) -> None:
        self.kept: list[DevelopmentScore] = []

    def write(self, model: TrainableResRank, progress: Progress, out: Path) -> None:
        """As ``resrank.training.trainer.CheckpointWriter``."""
        assert progress.best is not None
        self.kept.append(progress.best.score)
        out.mkdir()
        (out / "step").write_text(str(progress.total_step))


def tiny_trainer(
    config: TrainConfig,
    start: Path,
    *,
    data: TrainingData | None = None,
    writer: RecordingWriter | None = None,
    console: Console | None = None,
) -> Trainer:
    """A trainer of this process alone."""
    return Trainer(
        config,
        start,
        data or tiny_data(),
        RunFolder(config.output),
        writer or RecordingWriter(),
        Processes(),
        RunProgress(console or Console(file=io.StringIO(), width=120)),
    )


def losses(folder: Path) -> list[tuple[str, int, float]]:
    """Stage, step and loss of every record of training."""
    return [
        (record["stage"], record["step"], record["loss"])
        for record in read_log(folder / "log.jsonl")
        if record["kind"] == "training"
    ]


def development(folder: Path) -> list[Mapping[str, Any]]:
    """Every record of a development score."""
    return [record for record in read_log(folder / "log.jsonl") if record["kind"] == "development"]
