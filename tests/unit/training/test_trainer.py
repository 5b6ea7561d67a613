"""Whole runs on tiny random models: what is kept, what goes on after a kill, what a failure leaves behind."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from resrank.core.errors import InvalidInputError, TrainingError
from resrank.training import trainer
from resrank.training.config import TrainConfig
from resrank.training.config_file import parse_config
from resrank.training.development import Development, DevelopmentScore
from resrank.training.lists import CandidateList
from resrank.training.run_folder import Opening
from resrank.training.stages.joint import Joint
from resrank.training.stages.reranker_alignment import RerankerAlignment
from support.tiny_checkpoint import make_tiny_checkpoint
from support.tiny_run import RecordingWriter, development, losses, one_set, tiny_config, tiny_data, tiny_trainer

Step = Callable[[Any, Sequence[CandidateList], Callable[[Tensor], None]], dict[str, float]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "checkpoint"
    make_tiny_checkpoint(folder, query_residual=True, residual_gate=0.5)
    return folder


@pytest.fixture(scope="module")
def paper_form(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Identity in place of projectors, gate 1, no query residual."""
    folder = tmp_path_factory.mktemp("paper") / "checkpoint"
    make_tiny_checkpoint(folder, embedding_dim=32, hidden_size=32)
    return folder


@pytest.fixture(autouse=True)
def quick_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes as long as a tiny run; test_curves looks at the image."""
    monkeypatch.setattr(trainer, "draw_curves", lambda log, out: out.write_bytes(log.read_bytes()[:0]))


@dataclass(frozen=True)
class Finished:
    config: TrainConfig
    shown: str


@pytest.fixture(scope="module")
def finished(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run that nothing disturbed."""
    config, shown = killable(tmp_path_factory.mktemp("finished") / "run"), io.StringIO()
    with contextlib.suppress(TrainingError):  # a random model need not get better than dense-start
        tiny_trainer(config, start, console=Console(file=shown, width=200)).run(Opening.NEW)
    assert (config.output / "result.json").is_file()
    return Finished(config, shown.getvalue())


def killable(output: Path) -> TrainConfig:
    """With dropout in both backbones: LoRA's in the reranker, and BERT's own 0.1 in the encoder."""
    model = {"compute": {"precision": "fp32"}, "reranker": {"lora_dropout": 0.2}, "encoder": {"dropout": True}}
    return tiny_config(output, model=model, development={"every_steps": 3, "candidates": 4})


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Development scores (in retrieved order, shuffled) to be given out in turn; dense retrieval has 0.5."""
    told: list[tuple[float, float]] = []

    def evaluate(self: Development, *_: object, **__: object) -> DevelopmentScore:
        return one_set(*told.pop(0), dense=0.5)

    monkeypatch.setattr(Development, "evaluate", evaluate)
    return told


def break_step(monkeypatch: pytest.MonkeyPatch, stage: type, number: int, breaking: Callable[[Step], Step]) -> None:
    """Replaces one pass of a stage, counted from 1."""
    original: Step = stage.step
    calls = 0

    def step(self: Any, lists: Sequence[CandidateList], backward: Callable[[Tensor], None]) -> dict[str, float]:
        nonlocal calls
        calls += 1
        return (breaking(original) if calls == number else original)(self, lists, backward)

    monkeypatch.setattr(stage, "step", step)


def kill(_: Step) -> Step:
    def step(*_: object) -> dict[str, float]:
        raise KeyboardInterrupt

    return step


def weights(folder: Path) -> dict[str, Tensor]:
    newest = max((folder / "state").iterdir())
    return load_file(newest / "tensors.safetensors")


@pytest.mark.parametrize(
    ("stage", "number"),
    [(RerankerAlignment, 4), (Joint, 1), (Joint, 4)],
    ids=["in stage 1, a step after the state", "between the stages", "in stage 2"],
)
def test_a_killed_run_goes_on_as_if_it_had_never_stopped(
    start: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: type, number: int
) -> None:
    """Bit for bit, with dropout on: losses, norms, gate, development scores, weights and moments."""
    config = killable(tmp_path / "run")
    with monkeypatch.context() as patch:
        break_step(patch, stage, number, kill)
        with pytest.raises(KeyboardInterrupt):
            tiny_trainer(config, start).run(Opening.NEW)
    assert not (config.output / "result.json").exists()
    torch.manual_seed(4711)  # whatever the new process begins with
    with contextlib.suppress(TrainingError):
        tiny_trainer(config, start).run(Opening.RESUME)

    times = {"time", "lists_per_s"}
    whole, resumed = (
        [
            {key: value for key, value in json.loads(line).items() if key not in times}
            for line in (folder / "log.jsonl").read_text().splitlines()
        ]
        for folder in (finished.config.output, config.output)
    )
    assert whole == resumed
    assert len(losses(config.output)) == 8
    first, second = weights(finished.config.output), weights(config.output)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_sharded_models_checkpoint_is_built_without_touching_dropout(start: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_config(tmp_path / "run"), start)
    before = torch.get_rng_state()
    trainer._build()
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_was_on_so_that_resuming_exactly_means_something(
    start: Path, finished: Finished, tmp_path: Path
) -> None:
    without = tiny_config(tmp_path / "run", stages={"reranker_alignment": {"steps": 4, "lists_per_step": 4}})
    with contextlib.suppress(TrainingError):
        tiny_trainer(without, start).run(Opening.NEW)
    # The first step is the same: adapters start at 0.
    assert losses(without.output)[0] == losses(finished.config.output)[0]
    assert losses(without.output)[1] != losses(finished.config.output)[1]


def test_passes_of_a_step_add_up_to_one_pass_over_all_its_lists(
    start: Path, tmp_path: Path, scores: list[tuple[float, float]]
) -> None:
    one, four = (
        tiny_config(tmp_path / str(passes), stages={"reranker_alignment": {"steps": 3, "lists_per_step": 4,
                                                                           "accumulate": passes}})
        for passes in (1, 4)
    )  # fmt: skip
    for config in (one, four):
        scores += [(0.6, 0.6)] * 3
        tiny_trainer(config, start).run(Opening.NEW)
    assert [loss for *_, loss in losses(one.output)] == pytest.approx(
        [loss for *_, loss in losses(four.output)], rel=1e-4
    )


def test_the_best_of_the_worse_order_is_kept_if_it_is_above_dense_start(
    start: Path, tmp_path: Path, scores: list[tuple[float, float]]
) -> None:
    scores += [(0.5, 0.5), (0.9, 0.45), (0.6, 0.55), (0.52, 0.9), (0.58, 0.7)]
    config, writer = tiny_config(tmp_path / "run"), RecordingWriter()
    ended = tiny_trainer(config, start, writer=writer).run(Opening.NEW)

    assert [(score.sets[0].retrieved, score.sets[0].shuffled) for score in writer.kept] == [(0.6, 0.55), (0.58, 0.7)]
    assert (config.output / "checkpoint" / "step").read_text() == "8"
    assert sorted(path.name for path in config.output.iterdir()) == [
        "checkpoint", "config.yaml", "curves.png", "log.jsonl", "result.json", "state", "tensorboard"
    ]  # fmt: skip
    assert ended.best is not None
    assert (ended.best.stage, ended.best.step, ended.best.total_step) == ("joint", 4, 8)
    assert json.loads((config.output / "result.json").read_text())["kept"] is True


def test_a_run_that_is_never_above_dense_start_says_so_and_keeps_nothing(
    start: Path, tmp_path: Path, scores: list[tuple[float, float]]
) -> None:
    scores += [(0.5, 0.5), (0.9, 0.48), (0.9, 0.49), (0.5, 0.5), (0.2, 0.2)]  # as good as dense-start is not enough
    config = tiny_config(tmp_path / "run")
    with pytest.raises(TrainingError) as caught:
        tiny_trainer(config, start).run(Opening.NEW)

    assert str(caught.value) == (
        "nothing was kept: the best, after step 2 of joint, gains +0.0000 over dense-start (development nDCG@10, the "
        "worse of both orders): nDCG@10 0.5000 in retrieved order, 0.5000 shuffled (dense 0.5000); "
        f"{config.output / 'state'} holds the last step"
    )
    assert not (config.output / "checkpoint").exists()
    assert json.loads((config.output / "result.json").read_text())["kept"] is False


def not_a_number(original: Step) -> Step:
    def step(self: Any, lists: Sequence[CandidateList], backward: Callable[[Tensor], None]) -> dict[str, float]:
        parts = original(self, lists, lambda loss: backward(loss * math.nan))
        return {**parts, "ranking": math.nan}

    return step


def infinite_gradient(original: Step) -> Step:
    def step(self: Any, lists: Sequence[CandidateList], backward: Callable[[Tensor], None]) -> dict[str, float]:
        return original(self, lists, lambda loss: backward(loss * math.inf))

    return step


@pytest.mark.parametrize(
    ("breaking", "told"),
    [(not_a_number, "the loss is not finite: ranking is nan"), (infinite_gradient, "the gradient is not finite: ")],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_lists(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[tuple[float, float]],
    breaking: Callable[[Step], Step], told: str,
) -> None:  # fmt: skip
    scores += [(0.5, 0.5), (0.6, 0.6), (0.7, 0.7)]
    config, data = tiny_config(tmp_path / "run"), tiny_data()
    break_step(monkeypatch, Joint, 2, breaking)
    with pytest.raises(TrainingError) as caught:
        tiny_trainer(config, start, data=data).run(Opening.NEW)

    message = str(caught.value)
    assert message.startswith(f"joint, step 2: {told}")
    named = message.partition(" on lists ")[2].partition(";")[0].split(", ")
    assert len(named) == 4
    assert set(named) <= {f"tiny:{candidates.id}" for candidates in data.train[0].lists}
    assert f"{config.output / 'checkpoint'} is the best so far (+0.2000 over dense-start)" in message
    assert f"--resume goes on from {config.output / 'state' / 'step-00000004'}" in message
    assert (config.output / "checkpoint" / "step").read_text() == "4"
    assert (config.output / "curves.png").is_file()
    assert all(torch.isfinite(value.float()).all() for value in weights(config.output).values())


def test_a_disk_that_fills_up_leaves_the_last_state_and_checkpoint(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[tuple[float, float]]
) -> None:
    scores += [(0.5, 0.5), (0.6, 0.6), (0.7, 0.7)]
    config = tiny_config(tmp_path / "run")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "state/tensors")

    original = RecordingWriter.write
    written = 0

    def write(self: RecordingWriter, *arguments: Any) -> None:
        nonlocal written
        written += 1
        if written == 2:
            arguments[2].mkdir()
            full()
        original(self, *arguments)

    monkeypatch.setattr(RecordingWriter, "write", write)
    with pytest.raises(TrainingError) as caught:
        tiny_trainer(config, start).run(Opening.NEW)

    assert str(caught.value) == (
        "state/tensors: cannot be written (No space left on device); "
        f"{config.output / 'checkpoint'} is the best so far (+0.1000 over dense-start); "
        f"--resume goes on from {config.output / 'state' / 'step-00000002'}"
    )
    assert (config.output / "checkpoint" / "step").read_text() == "2"
    scores += [(0.7, 0.7), (0.7, 0.7), (0.7, 0.7)]
    tiny_trainer(config, start).run(Opening.RESUME)
    assert (config.output / "checkpoint" / "step").read_text() == "4"


def test_the_config_of_a_run_is_written_with_all_its_defaults(finished: Finished) -> None:
    written = (finished.config.output / "config.yaml").read_text()
    assert parse_config(yaml.safe_load(written)) == finished.config


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"data": {"train": [{"kind": "listwise", "path": "x"}], "development": [{"hold_back": 1}],
                      "candidates": {"max_passages": 17}}},
            "data.candidates.max_passages: is above the checkpoint's max_passages (limit 16, got 17)",
        ),
        (
            {"development": {"candidates": 17}},
            "development.candidates: is above the checkpoint's max_passages (limit 16, got 17)",
        ),
        (
            {"model": {"fusion": {"gate": {"start": 0.0}}}},
            "model.fusion.gate.start: 0 gives the query a zero vector: the checkpoint has no query_residual",
        ),
    ],
    ids=["candidates", "development", "gate"],
)  # fmt: skip
def test_what_does_not_fit_the_start_is_refused_before_anything_is_written(
    paper_form: Path, tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        tiny_trainer(tiny_config(tmp_path / "run", **sections), paper_form)
    assert str(caught.value) == message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("gate", [{"start": 0.0, "learned": False}, {"learned": False}], ids=["config", "checkpoint"])
def test_a_reranker_behind_a_gate_that_stays_0_is_not_trained_in_vain(tmp_path: Path, gate: dict[str, Any]) -> None:
    stored = 0.5 if "start" in gate else 0.0
    make_tiny_checkpoint(tmp_path / "start", query_residual=True, residual_gate=stored)
    with pytest.raises(InvalidInputError, match=r"model\.fusion\.gate\.learned: false at a gate of 0"):
        tiny_trainer(tiny_config(tmp_path / "run", model={"fusion": {"gate": gate}}), tmp_path / "start")


def test_development_is_measured_before_the_first_step_and_at_the_end_of_every_stage(finished: Finished) -> None:
    records = development(finished.config.output)
    assert [(record["stage"], record["step"]) for record in records] == [
        ("start", 0), ("reranker_alignment", 3), ("reranker_alignment", 4), ("joint", 3), ("joint", 4)
    ]  # fmt: skip


def test_vectors_are_computed_again_only_in_a_stage_that_trains_the_encoder(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[tuple[float, float]]
) -> None:
    scores += [(0.5, 0.5), (0.6, 0.6), (0.7, 0.7)]
    asked: list[bool] = []
    scripted = Development.evaluate

    def evaluate(self: Development, *arguments: Any, encoder_changed: bool, **options: Any) -> DevelopmentScore:
        asked.append(encoder_changed)
        return scripted(self, *arguments, encoder_changed=encoder_changed, **options)

    monkeypatch.setattr(Development, "evaluate", evaluate)
    stages = {name: {"steps": 1, "lists_per_step": 4} for name in ("reranker_alignment", "joint")}
    tiny_trainer(tiny_config(tmp_path / "run", stages=stages), start).run(Opening.NEW)
    assert asked == [True, False, True]


def test_a_person_without_a_terminal_reads_stages_losses_and_scores(finished: Finished) -> None:
    lines = finished.shown.splitlines()
    assert lines[0].startswith("tiny development: 4 development lists, dense-start nDCG@10 0.")
    assert "reranker_alignment: 4 steps" in lines
    assert sum("lists/s" in line and "loss" in line for line in lines) == 8
    assert sum("in retrieved order" in line for line in lines) == 5


def test_the_papers_form_trains_with_the_identity_and_without_a_query_residual(
    paper_form: Path, tmp_path: Path, scores: list[tuple[float, float]]
) -> None:
    scores += [(0.6, 0.6)] * 5
    tiny_trainer(tiny_config(tmp_path / "run"), paper_form).run(Opening.NEW)
    found = losses(tmp_path / "run")
    assert len(found) == 8
    assert all(math.isfinite(loss) for *_, loss in found)


def test_positions_go_on_from_stage_to_stage_and_every_list_is_seen(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[tuple[float, float]]
) -> None:
    seen: list[str] = []
    for stage in (RerankerAlignment, Joint):
        original: Step = stage.step

        def step(
            self: Any, lists: Sequence[CandidateList], backward: Any, original: Step = original
        ) -> dict[str, float]:
            seen.extend(candidates.id for candidates in lists)
            return original(self, lists, backward)

        monkeypatch.setattr(stage, "step", step)
    scores += [(0.6, 0.6)] * 5
    ended = tiny_trainer(tiny_config(tmp_path / "run"), start).run(Opening.NEW)
    assert ended.position == len(seen) == 32
    assert len(set(seen[:12])) == 12  # the first epoch over 12 lists


def test_development_questions_with_nothing_to_find_are_refused(start: Path, tmp_path: Path) -> None:
    data = tiny_data()
    (part,) = data.development
    hopeless = replace(part, lists=tuple(_without_relevant_first(candidates) for candidates in part.lists))
    data = replace(data, development=(hopeless,))
    with pytest.raises(InvalidInputError, match="no list of tiny development has a relevant passage among its first 2"):
        tiny_trainer(tiny_config(tmp_path / "run", development={"candidates": 2}), start, data=data)


def _without_relevant_first(candidates: CandidateList) -> CandidateList:
    order = sorted(range(len(candidates)), key=lambda row: candidates.labels[row])
    zeros = [row for row in order if candidates.labels[row] == 0]
    padded = [*zeros, *[zeros[0]] * 2][:2] + [row for row in order if candidates.labels[row] > 0]
    return replace(
        candidates,
        passages=tuple(candidates.passages[row] for row in padded),
        labels=tuple(candidates.labels[row] for row in padded),
    )
