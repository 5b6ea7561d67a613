"""``resrank calibrate`` with a tiny checkpoint, and where its calibration goes from there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from resrank.core.calibration_file import read_calibration_file, write_calibration_file
from resrank.core.checkpoint import read_spec, validate_folder
from resrank.core.errors import CheckpointError
from resrank.export.adapters import merge_adapter
from resrank.stack.cli.app import run
from support.tiny_adapter import make_tiny_adapter
from support.tiny_calibration import CALIBRATION, calibration_file
from support.tiny_checkpoint import make_tiny_checkpoint

from .test_eval_command import TOPICS, write_lines


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate") / "checkpoint"
    make_tiny_checkpoint(folder, query_residual=True, residual_gate=0.0, max_passages=8)
    return folder


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question for each topic, which two of twenty passages are about: one is judged relevant, of some the other."""
    folder = tmp_path_factory.mktemp("calibrate") / "topics"
    (folder / "qrels").mkdir(parents=True)
    passages = [
        {"_id": f"p{number}", "title": topic, "text": f"{topic} {topic} {topic} {number}"}
        for number, topic in enumerate(TOPICS * 2)
    ]
    write_lines(folder / "corpus.jsonl", passages)
    questions = [{"_id": f"q{number}", "text": f"{topic} {topic} {topic}"} for number, topic in enumerate(TOPICS)]
    write_lines(folder / "queries.jsonl", questions)
    judged = [f"q{number}\tp{number}\t2\n" for number in range(10)]
    judged += [f"q{number}\tp{number + 10}\t1\n" for number in range(0, 10, 2)]
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    return folder


def test_it_lies_beside_the_checkpoint_and_says_how_it_was_found(
    checkpoint: Path, collection: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["calibrate", str(checkpoint), f"{collection}:dev", "--depth", "12", "--output", "json"]
    assert run(command) == 0
    told = json.loads(capsys.readouterr().out)
    found = read_calibration_file(checkpoint)
    assert found is not None
    assert found.model_dump(mode="json") == told
    assert found.checkpoint_sha256 == validate_folder(checkpoint).digest()
    (data,) = found.fit.collections
    assert (data.name, data.split, data.questions, data.passages) == ("topics", "dev", 10, 120)
    assert data.relevant == 15
    assert set(found.fit.reranker) == set(found.fit.with_words) == {"1 / (1 + exp(-s))", "platt", "isotonic"}
    relevance = found.calibration.for_weight(0.3).of(np.linspace(-1, 2, 50))
    assert relevance[0] < 0.1 < relevance[-1]

    assert run(command) == 2
    assert "exists: replace it with --force" in " ".join(capsys.readouterr().err.split())
    assert run([*command[:-2], "--relevant-from", "2", "--force"]) == 0
    shown = capsys.readouterr().out
    assert "10 questions, 120 candidates, 10 relevant" in " ".join(shown.split())
    assert shown.count("kept") == 2
    again = read_calibration_file(checkpoint)
    assert again is not None
    assert again.fit.relevant_from == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere:dev"], "nowhere"),
        (["{collection}:test"], "test.tsv"),
        (["{collection}:dev", "--folds", "11"], "too few questions with candidates (limit 11, got 10)"),
        (
            ["{collection}:dev", "--relevant-from", "3", "--depth", "16"],
            "must be relevant in part (limit 1 to 159, got 0)",
        ),
    ],
)
def test_what_cannot_be_fitted_is_a_sentence_and_no_file(
    checkpoint: Path, collection: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["calibrate", str(checkpoint), *(word.format(collection=collection) for word in words)]
    assert run(command) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (checkpoint / "calibration.json").exists()


def test_another_checkpoints_calibration_is_refused_and_fit_cosines_leaves_it_behind(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_calibration_file(calibration_file("d" * 64), checkpoint)
    assert run(["checkpoint", "show", str(checkpoint)]) == 1
    assert "remove the file, or fit again with resrank calibrate" in " ".join(capsys.readouterr().err.split())
    write_calibration_file(calibration_file(read_spec(checkpoint).digest()), checkpoint)
    write_lines(
        tmp_path / "corpus.jsonl", [{"_id": f"p{n}", "text": f"The moon {n}. A river {n}."} for n in range(250)]
    )
    command = ["checkpoint", "fit-cosines", str(checkpoint), "--corpus", str(tmp_path / "corpus.jsonl")]
    assert run([*command, "--out", str(tmp_path / "mapped")]) == 0
    validate_folder(tmp_path / "mapped")


@pytest.mark.parametrize("adapter", [False, True])
def test_a_stale_calibration_is_replaced_by_force(
    adapter: bool, made: Path, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where an adapter's bases are found by name
    shutil.copytree(made, tmp_path / "checkpoint")
    if adapter:
        make_tiny_adapter(tmp_path / "adapter", made, sources=("checkpoint/encoder", "checkpoint/reranker"))
    stale = Path("adapter" if adapter else "checkpoint")
    write_calibration_file(calibration_file("d" * 64), stale)
    assert run(["calibrate", str(stale), f"{collection}:dev", "--depth", "12", "--force"]) == 0
    whole = merge_adapter(stale, tmp_path / "whole") if adapter else validate_folder(stale)
    found = read_calibration_file(stale)
    assert found is not None
    assert found.checkpoint_sha256 == whole.digest()


def test_merging_keeps_it_where_it_is_the_merged_checkpoints(made: Path, tmp_path: Path) -> None:
    make_tiny_adapter(tmp_path / "adapter", made, train_encoder=False)
    bases = {"encoder": made / "encoder", "reranker": made / "reranker"}
    digest = merge_adapter(tmp_path / "adapter", tmp_path / "first", **bases).digest()
    write_calibration_file(calibration_file(digest), tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "second", **bases)
    kept = read_calibration_file(tmp_path / "second")
    assert kept is not None
    assert kept.calibration == CALIBRATION
    write_calibration_file(calibration_file("d" * 64), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="fitted to checkpoint dddd"):
        merge_adapter(tmp_path / "adapter", tmp_path / "third", **bases)
    assert not (tmp_path / "third").exists()
