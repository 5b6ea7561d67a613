"""States of a run: complete or not there, and gone on from by the same run alone."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resrank.core.errors import CheckpointError, TrainingError
from resrank.training import state
from resrank.training.sources import Source, TrainingData
from resrank.training.state import Best, Origin, Progress, StateFolder, data_sha256
from support.tiny_run import one_set, tiny_config, tiny_data


def origin(**changes: object) -> Origin:
    weights = {"encoder": "a" * 64, "reranker": "b" * 64, "projectors": None}
    made = Origin(config=tiny_config(Path("run")), weights=weights, data="d" * 64, processes=1)
    return made.model_copy(update=changes)


def progress(total_step: int) -> Progress:
    score = one_set(0.75, 0.625, dense=0.5)
    best = Best(stage="joint", step=1, total_step=3, score=score, gain=0.125)
    before = one_set(0.5, 0.5, dense=0.5)
    return Progress(
        stage="joint", step=2, total_step=total_step, position=9, seconds=1.5, dense_start=before, best=best
    )  # fmt: skip


def tensors(value: float) -> dict[str, Tensor]:
    return {"weights/a": torch.full((3,), value), "random/0/cpu": torch.arange(5, dtype=torch.uint8)}


@contextmanager
def full_disk(at: int) -> Iterator[None]:
    """A real write that fails: the kernel refuses files above this many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state", keep=2)
    folder.write(origin(), progress(4), tensors(0.5))
    found, values = StateFolder(tmp_path / "state", keep=2).read(origin())
    assert found == progress(4)
    assert {name: value.tolist() for name, value in values.items()} == {
        "weights/a": [0.5] * 3,
        "random/0/cpu": [0, 1, 2, 3, 4],
    }


def test_the_last_states_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path, keep=2)
    for step in (9, 10, 100):  # by number, not by name
        folder.write(origin(), progress(step), tensors(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]
    assert folder.read(origin())[1]["weights/a"].tolist() == [100.0] * 3


@pytest.mark.parametrize("at", [16, 1200], ids=["fields", "tensors"])
def test_a_full_disk_leaves_the_state_before_as_it_was(tmp_path: Path, at: int) -> None:
    folder = StateFolder(tmp_path, keep=1)
    folder.write(origin(), progress(1), tensors(1.0))
    with full_disk(at), pytest.raises(OSError, match="File too large"):
        folder.write(origin(), progress(2), {"weights/a": torch.zeros(10_000)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert folder.read(origin())[1]["weights/a"].tolist() == [1.0] * 3


def test_a_kill_while_writing_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = StateFolder(tmp_path, keep=1)
    folder.write(origin(), progress(1), tensors(1.0))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    # Before the rename, and without the clean-up that a real kill prevents.
    monkeypatch.setattr(state, "flush_tree", killed)
    monkeypatch.setattr(state.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        folder.write(origin(), progress(2), tensors(2.0))
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 2
    assert folder.read(origin())[0].total_step == 1
    folder.write(origin(), progress(2), tensors(2.0))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_without_a_state_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no state to resume from"):
        StateFolder(tmp_path / "state", keep=1).read(origin())


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
def test_a_damaged_state_is_named(tmp_path: Path, file: str) -> None:
    folder = StateFolder(tmp_path, keep=1)
    folder.write(origin(), progress(1), tensors(1.0))
    (tmp_path / "step-00000001" / file).write_bytes(b"{")
    with pytest.raises(CheckpointError, match=rf"step-00000001/{file}: not a readable state .*: remove "):
        folder.read(origin())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"weights": {"encoder": "c" * 64, "reranker": "b" * 64, "projectors": None}},
            f"its encoder was another at the start (sha256 {'a' * 64}, this run's is {'c' * 64})",
        ),
        (
            {"config": tiny_config(Path("run"), stages={"joint": {"steps": 5, "lists_per_step": 4}})},
            "is of another config: stages.joint.steps was 4, is 5; resume with the same one, or start again with "
            "--force",
        ),
        ({"config": tiny_config(Path("run"), seed=1)}, "is of another config: seed was 0, is 1"),
        ({"data": "e" * 64}, "was trained on other data: a file in data.train or data.development has changed"),
        ({"processes": 2}, "is of 1 processes, these are 2"),
    ],
)
def test_another_run_does_not_go_on_from_it(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    folder = StateFolder(tmp_path, keep=1)
    folder.write(origin(), progress(1), tensors(1.0))
    with pytest.raises(TrainingError) as caught:
        folder.read(origin(**changes))
    assert told in str(caught.value)


def test_what_does_not_change_the_training_may_differ(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path, keep=1)
    folder.write(origin(), progress(1), tensors(1.0))
    moved = tiny_config(Path("elsewhere"), threads=3, checkpoints={"keep": 5}, logging={"every_steps": 7})
    assert folder.read(origin(config=moved))[0] == progress(1)


def test_the_datas_digest_sees_every_text_label_and_weight() -> None:
    data = tiny_data()
    (source,) = data.train
    relabelled = replace(source.lists[0], labels=tuple(label + 1 for label in source.lists[0].labels))
    passages = (replace(source.lists[0].passages[0], text="another"), *source.lists[0].passages[1:])
    reworded = replace(source.lists[0], passages=passages)
    (part,) = data.development
    asked = replace(source.lists[0], query="", query_vector=b"\0\0\x80?")
    digests = {
        data_sha256(data),
        data_sha256(TrainingData((Source("tiny", 2.0, source.lists),), data.development)),
        data_sha256(TrainingData((Source("tiny", 1.0, source.lists[::-1]),), data.development)),
        data_sha256(TrainingData(data.train, (replace(part, lists=part.lists[1:]),))),
        data_sha256(TrainingData((Source("tiny", 1.0, (relabelled, *source.lists[1:])),), data.development)),
        data_sha256(TrainingData((Source("tiny", 1.0, (reworded, *source.lists[1:])),), data.development)),
        data_sha256(TrainingData((Source("tiny", 1.0, (asked, *source.lists[1:])),), data.development)),
        data_sha256(
            TrainingData((Source("tiny", 1.0, (replace(asked, query_vector=b"\0\0\0?"), *source.lists[1:])),), (part,))
        ),
        data_sha256(TrainingData((Source("tiny", 1.0, (replace(asked, wording="who?"), *source.lists[1:])),), (part,))),
    }
    assert len(digests) == 9
    assert data_sha256(data) == data_sha256(tiny_data())
