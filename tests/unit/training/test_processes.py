"""Two processes train as one does on twice the lists, as replicas and as shards of one model."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from resrank.core.errors import TrainingError
from resrank.training.logs import read_log
from resrank.training.processes import Processes, place_like, whole
from resrank.training.run_folder import Opening
from support.tiny_checkpoint import make_tiny_checkpoint
from support.tiny_processes import comparable_config
from support.tiny_run import tiny_trainer

TESTS = Path(__file__).parents[2]
TIMEOUT_S = 600  # seconds where nothing else runs; this machine may be busy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, and the same run of one, in one folder."""
    folder = tmp_path_factory.mktemp("processes")
    make_tiny_checkpoint(
        folder / "start", encoder_family="llama", pooling="last", query_residual=True, residual_gate=0.5
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(TESTS),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    launched = [
        subprocess.Popen(
            [sys.executable, "-m", "support.tiny_processes", str(folder)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        with contextlib.suppress(TrainingError):
            tiny_trainer(comparable_config(folder / "one"), folder / "start").run(Opening.NEW)
        for process in launched:
            output, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, output
    finally:
        for process in launched:
            process.kill()
    return folder


def curve(folder: Path) -> list[dict[str, Any]]:
    left_out = {"time", "lists_per_s", "kind", "stage"}
    return [
        {key: value for key, value in record.items() if key not in left_out}
        for record in read_log(folder / "log.jsonl")
    ]


@pytest.mark.parametrize("name", ["replicas", "sharded"])
def test_two_processes_take_the_steps_of_one_with_twice_the_lists(folder: Path, name: str) -> None:
    """Losses, gradient norms by group, gate and development scores of both stages, with chunked encoder passes."""
    one, two = curve(folder / "one"), curve(folder / name)
    assert len(one) == len(two) == 5 + 3
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["replicas", "sharded"])
def test_the_state_of_two_processes_is_that_of_one_and_holds_whole_tensors(folder: Path, name: str) -> None:
    one, two = (load_file(max((folder / run / "state").iterdir()) / "tensors.safetensors") for run in ("one", name))
    assert two.keys() - one.keys() == {"random/1/cpu"}
    assert one.keys() <= two.keys()
    apart = []
    for key, value in one.items():
        if not key.startswith("random/"):
            assert two[key].shape == value.shape
            # A step moves a weight by 1e-3; AdamW divides by the gradient's own size, so where that is rounding, a
            # fiftieth of a step is.
            assert torch.allclose(two[key], value, rtol=1e-3, atol=2e-5), key
            apart.append((two[key] - value).abs().flatten())
    # That is so of one weight in ten thousand (4e-6 were seen); nearly all have the same bits.
    assert torch.cat(apart).quantile(0.999) < 1e-6


def test_a_loss_that_is_not_finite_in_one_process_stops_all_and_names_its_lists(folder: Path) -> None:
    told = [(folder / f"told-{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1]
    assert told[0].startswith("joint, step 2: the loss is not finite: loss is nan on lists tiny:q")
    assert len(told[0].partition(" on lists ")[2].partition(";")[0].split(", ")) == 2  # of the second process alone


def test_one_process_needs_nobody() -> None:
    processes = Processes()
    assert (processes.rank, processes.count, processes.first) == (0, 1, True)
    assert processes.gather("a") == ["a"]
    assert processes.largest(3) == 3
    assert processes.mean({"a": 0.1}) == {"a": 0.1}
    parameter = nn.Parameter(torch.ones(2))
    processes.average_gradients([parameter])
    assert parameter.grad is None


def test_each_process_drops_out_differently_and_the_same_one_again() -> None:
    processes = Processes()

    def mask(rank: int, seed: int = 0) -> list[bool]:
        processes.rank = rank
        processes.seed(seed)
        return (functional.dropout(torch.ones(64)) == 0).tolist()

    masks = [mask(0), mask(1), mask(2), mask(0, seed=1), mask(1, seed=1)]
    assert len({tuple(one) for one in masks}) == len(masks)
    assert mask(1) == masks[1]


def test_random_states_come_back() -> None:
    processes = Processes()
    state = processes.random_state()
    drawn = torch.rand(3)
    processes.restore_random_state(state)
    assert torch.equal(torch.rand(3), drawn)


def test_whole_tensors_are_copies_and_placed_ones_have_the_others_type() -> None:
    original = torch.ones(2)
    (copy,) = whole({"a": original}).values()
    original.zero_()
    assert copy.tolist() == [1.0, 1.0]
    assert place_like(copy.double(), original).dtype is torch.float32
