"""A run's folder never loses what is in it, unless it is told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from resrank.core.errors import TrainingError
from resrank.training.run_folder import Opening, RunFolder
from support.tiny_run import tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def opened(folder: RunFolder) -> RunFolder:
    folder.open(Opening.NEW, tiny_config(folder.path))
    return folder


def finished(folder: RunFolder) -> RunFolder:
    opened(folder).replace_checkpoint(lambda out: out.mkdir())
    folder.finish({"kept": True})
    return folder


def test_a_new_run_takes_a_folder_that_is_not_there_or_empty(folder: RunFolder) -> None:
    folder.check(Opening.NEW)
    assert not folder.path.exists()
    folder.path.mkdir()
    folder.check(Opening.NEW)
    folder.start.mkdir()  # of an attempt that failed before training
    opened(folder)
    assert folder.start.is_dir()


@pytest.mark.parametrize(
    ("made", "opening", "told"),
    [
        (finished, Opening.NEW, "holds a finished run; --force replaces it"),
        (finished, Opening.RESUME, "the run in it is finished; --force replaces it"),
        (opened, Opening.NEW, "holds an unfinished run; --resume goes on, --force starts again"),
        (lambda folder: folder, Opening.RESUME, "holds no run to resume"),
    ],
)
def test_a_run_is_not_overwritten(folder: RunFolder, made: object, opening: Opening, told: str) -> None:
    made(folder)  # type: ignore[operator]
    with pytest.raises(TrainingError) as caught:
        folder.open(opening, tiny_config(folder.path))
    assert str(caught.value) == f"{folder.path}: {told}"


@pytest.mark.parametrize("opening", [Opening.NEW, Opening.FORCE])
def test_a_folder_of_something_else_is_never_touched(folder: RunFolder, opening: Opening) -> None:
    folder.path.mkdir()
    (folder.path / "thesis.tex").touch()
    with pytest.raises(TrainingError, match="is not the folder of a run; choose another with --out"):
        folder.open(opening, tiny_config(folder.path))
    assert (folder.path / "thesis.tex").exists()


@pytest.mark.parametrize("opening", [Opening.NEW, Opening.FORCE])
def test_a_kill_while_the_start_was_made_does_not_block_the_folder(folder: RunFolder, opening: Opening) -> None:
    folder.path.mkdir()
    for name in (".start.ab12.partial", ".start-adapter.cd34.partial"):
        (folder.path / name).mkdir()
    folder.open(opening, tiny_config(folder.path))
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml"]


@pytest.mark.parametrize("opening", [Opening.RESUME, Opening.FORCE])
def test_what_a_killed_run_was_writing_is_removed(folder: RunFolder, opening: Opening) -> None:
    opened(folder)
    for part in (".checkpoint.new/encoder", "..checkpoint.new.ab12.partial/encoder", "state/.step-00000020.partial"):
        (folder.path / part).mkdir(parents=True)
    folder.open(opening, tiny_config(folder.path))
    assert {path.name for path in folder.path.iterdir()} <= {"config.yaml", "state"}
    assert not [*folder.state.glob(".*")]


def test_force_removes_what_a_run_left_and_nothing_else(folder: RunFolder) -> None:
    finished(folder)
    folder.log.touch()
    (folder.path / "notes.txt").touch()
    folder.open(Opening.FORCE, tiny_config(folder.path))
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml", "notes.txt"]


def test_a_checkpoint_is_replaced_only_by_a_complete_one(folder: RunFolder) -> None:
    opened(folder).replace_checkpoint(lambda out: (out.mkdir(), (out / "first").touch())[0])

    def failing(out: Path) -> None:
        out.mkdir()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        folder.replace_checkpoint(failing)
    assert [path.name for path in folder.checkpoint.iterdir()] == ["first"]
    folder.replace_checkpoint(lambda out: (out.mkdir(), (out / "second").touch())[0])
    assert [path.name for path in folder.checkpoint.iterdir()] == ["second"]


def test_a_kill_between_two_checkpoints_gives_the_first_one_back(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(folder).replace_checkpoint(lambda out: (out.mkdir(), (out / "first").touch())[0])
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if target == folder.checkpoint:
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            folder.replace_checkpoint(lambda out: out.mkdir())
    assert not folder.checkpoint.exists()
    folder.open(Opening.RESUME, tiny_config(folder.path))
    assert [path.name for path in folder.checkpoint.iterdir()] == ["first"]


def test_what_only_a_running_run_needs_is_gone_at_the_end(folder: RunFolder) -> None:
    folder.start.mkdir(parents=True)
    finished(folder)
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoint", "config.yaml", "result.json"]


def test_two_runs_are_never_in_one_folder(folder: RunFolder) -> None:
    other = RunFolder(folder.path)
    with folder.held(), pytest.raises(TrainingError, match="another run is in it"), other.held():
        pass
    assert not folder.path.exists(), "nothing came of either"
    with other.held():
        opened(other)
    assert other.config.is_file()
