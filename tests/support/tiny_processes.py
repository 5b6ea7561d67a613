"""One of several processes of tiny training runs; what it finds lies in the runs' folders.

Run as ``python -m support.tiny_processes FOLDER`` with the variables that ``torchrun`` sets.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from resrank.core.errors import TrainingError
from resrank.training.config import TrainConfig
from resrank.training.lists import CandidateList
from resrank.training.processes import Processes, shard
from resrank.training.progress import RunProgress
from resrank.training.run_folder import Opening, RunFolder
from resrank.training.stages.joint import Joint
from resrank.training.trainable import TrainableResRank
from resrank.training.trainer import Trainer
from support.tiny_run import RecordingWriter, tiny_config, tiny_data


def comparable_config(output: Path, **sections: Any) -> TrainConfig:
    """Without what depends on the number of processes by design: in-batch negatives, and dropout (in the start)."""
    groups = {"encoder": {"learning_rate": 1e-3}, "reranker": {"learning_rate": 1e-3}}
    stages = {
        "reranker_alignment": {"steps": 2, "lists_per_step": 4},
        "joint": {
            "steps": 3,
            "lists_per_step": 4,
            "encoding": {"chunk_passages": 3, "kept_passages": 3},
            "contrastive": {"weight": 0},
            **groups,
        },
    }
    model = {"compute": {"precision": "fp32"}, "encoder": {"mode": "full"}}
    return tiny_config(output, **{"stages": stages, "model": model, "development": {"candidates": 8}, **sections})


class ShardedProcesses(Processes):
    """FSDP on CPUs, which accelerate offers for accelerators only."""

    def __init__(self) -> None:
        super().__init__()
        self.sharded = True

    def place(self, model: TrainableResRank) -> None:
        """As ``Processes.place``."""
        shard(model, init_device_mesh("cpu", (self.count,)))


def train(config: TrainConfig, start: Path, processes: Processes) -> str:
    """Runs to the end; the message of the error that ended it, if one did."""
    progress = RunProgress(Console(file=io.StringIO()))
    run = Trainer(config, start, tiny_data(), RunFolder(config.output), RecordingWriter(), processes, progress)
    try:
        run.run(Opening.NEW)
    except TrainingError as error:
        return str(error)
    return ""


def break_second_process(processes: Processes) -> None:
    """Makes the loss of the second process, and of no other, NaN in the second step of stage 2."""
    original = Joint.step
    calls = 0

    def step(self: Joint, lists: Sequence[CandidateList], backward: Callable[[Tensor], None]) -> dict[str, float]:
        nonlocal calls
        calls += 1
        found = original(self, lists, backward)
        return {**found, "loss": math.nan} if calls == 2 and processes.rank == 1 else found

    Joint.step = step  # type: ignore[method-assign]


def main(folder: Path) -> None:
    """Trains replicas, then a sharded model, then replicas of which one meets a NaN."""
    torch.set_num_threads(1)
    processes = Processes()
    for name, used in (("replicas", processes), ("sharded", ShardedProcesses())):
        train(comparable_config(folder / name), folder / "start", used)
    break_second_process(processes)
    told = train(comparable_config(folder / "broken"), folder / "start", processes)
    (folder / f"told-{processes.rank}").write_text(told, encoding="utf-8")
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
