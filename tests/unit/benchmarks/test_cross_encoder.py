"""The cross-encoder that others are compared with learns from lists, and the comparison can read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from resrank.benchmarks import cross_encoder
from resrank.benchmarks.cross_encoder import read_facts, train
from resrank.benchmarks.text_models import PairScorer
from resrank.core.checkpoint import ENCODER_DIR
from resrank.core.errors import CheckpointError, InvalidInputError
from resrank.training.lists import CandidateList, LabelKind, TrainingPassage
from support.tiny_checkpoint import make_tiny_checkpoint

STEPS = 30
PASSAGES = tuple(TrainingPassage("", text) for text in ("The Seine is a river.", "A fox jumps.", "Moon orbit."))
LISTS = [
    CandidateList(
        id=str(number),
        query="which river flows through Paris?",
        passages=PASSAGES[:length],
        labels=(1.0, 0.0, 0.0)[:length],
        kind=LabelKind.GRADES,
        source="here",
    )
    for number, length in enumerate((2, 3))
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross-encoder") / "checkpoint"
    make_tiny_checkpoint(folder)
    return folder / ENCODER_DIR


def test_training_learns_the_lists_and_leaves_a_folder_that_is_read_back(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_encoder, "_LEARNING_RATE", 3e-3)  # for a model of a few thousand weights
    losses: list[float] = []
    out = tmp_path / "cross"
    facts = train(
        base, "tiny", LISTS, out, (step / STEPS for step in range(STEPS)), notify=lambda _, loss: losses.append(loss)
    )
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    assert (facts.base, facts.lists) == ("tiny", 4 * STEPS)
    assert read_facts(out) == facts
    scores = PairScorer(out, 64).scores(LISTS[1].query, [passage.encoder_text for passage in LISTS[1].passages])
    assert scores.argmax() == 0
    with pytest.raises(CheckpointError, match="exists already"):
        train(base, "tiny", LISTS, out, [0.0])


def test_a_folder_of_something_else_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cross_encoder.* holds none of scripts/train_cross_encoder\.py"):
        read_facts(base)
    with pytest.raises(InvalidInputError, match=r"lists.* none has anything to rank"):
        train(base, "tiny", [], tmp_path / "out", [0.0])


def test_shares_are_of_the_time_that_has_gone_by_and_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([100.0, 100.0, 104.0, 108.0, 110.0])
    monkeypatch.setattr(cross_encoder.time, "monotonic", seconds.__next__)
    shares = list(cross_encoder.until(10.0))
    monkeypatch.undo()
    assert shares == [0.0, 0.4, 0.8]
