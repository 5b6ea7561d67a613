"""``resrank train`` as a user meets it, with tiny random backbones from end to end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from resrank.core.adapter import read_lora, validate_adapter
from resrank.core.checkpoint import encoder_identity, is_adapter, read_spec, validate_folder, write_spec
from resrank.export.adapters import merge_adapter
from resrank.model.modeling import ResRankModel
from resrank.stack.cli.app import run
from resrank.training.batches import Tokenizers
from resrank.training.development import Development, DevelopmentScore
from resrank.training.embedding_table import EmbeddingTable
from resrank.training.list_scores import score_lists
from resrank.training.stage_config import ModelConfig
from resrank.training.trainable import TrainableResRank
from support.tiny_adapter import make_tiny_adapter
from support.tiny_checkpoint import make_bert, make_llama, make_tiny_checkpoint
from support.tiny_run import one_set
from support.tiny_training import tiny_lists

Train = Callable[..., int]
LISTS = tiny_lists(16)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESRANK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def better(monkeypatch: pytest.MonkeyPatch) -> list[DevelopmentScore]:
    """Every evaluation is better than the last, so that the last step is kept; the real scores are collected."""
    original, found = Development.evaluate, list[DevelopmentScore]()

    def evaluate(self: Development, *arguments: Any, **options: Any) -> DevelopmentScore:
        found.append(original(self, *arguments, **options))
        return one_set(0.5 + len(found) / 100, 0.6 + len(found) / 100, dense=0.5)

    monkeypatch.setattr(Development, "evaluate", evaluate)
    return found


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Both stages, from two backbones, with candidates retrieved from their pool."""
    torch.manual_seed(0)
    make_bert(tmp_path / "tiny-bert", 32)
    make_llama(tmp_path / "tiny-llama", 48)
    lines = [
        {
            "id": candidates.id,
            "query": candidates.query,
            "passages": [
                {"title": passage.title, "text": passage.text, "label": int(label)}
                for passage, label in zip(candidates.passages, candidates.labels, strict=True)
            ],
        }
        for candidates in LISTS
    ]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {
        "name": "tiny-run",
        "output": str(tmp_path / "run"),
        "start": {
            "encoder": str(tmp_path / "tiny-bert"),
            "reranker": str(tmp_path / "tiny-llama"),
            "max_passage_tokens": 64,
            "max_passages": 128,
        },
        "data": {
            "train": [{"kind": "listwise", "path": str(tmp_path / "lists.jsonl")}],
            "development": [{"hold_back": 4}],
            "candidates": {"origin": "retrieved", "depth": 100, "max_passages": 8},
        },
        "model": {"compute": {"precision": "fp32"}, "fusion": {"gate": {"start": 0.3}}},
        "stages": {stage: {"steps": 2, "lists_per_step": 4} for stage in ("reranker_alignment", "joint")},
        # Deeper than the pool: how random backbones rank it must not decide whether a list has anything to find.
        "development": {"candidates": 100},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def scores(folder: Path) -> list[np.ndarray]:
    """Of some lists, by the model of a full checkpoint."""
    model = TrainableResRank(
        ResRankModel.from_checkpoint(folder), ModelConfig.model_validate({"compute": {"precision": "fp32"}})
    )
    tokenizers = Tokenizers.from_checkpoint(folder, model.spec)
    table = EmbeddingTable.build(model, tokenizers, LISTS)
    return score_lists(model, tokenizers, table, LISTS, lists_per_pass=4)


@pytest.mark.usefixtures("better")
def test_a_config_becomes_an_adapter_checkpoint_that_merges(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(config)]) == 0
    said = capsys.readouterr()
    out = tmp_path / "run"
    assert said.out.startswith(
        f"✓ {out / 'checkpoint'}: after step 2 of joint +0.0300 over dense-start; nDCG@10 0.5300 in "
        "retrieved order, 0.6300 shuffled"
    )
    assert "lists from a pool of" in said.err
    assert "reranker_alignment: 2 steps" in said.err
    assert not (out / "start").exists()

    spec = validate_adapter(out / "checkpoint")
    assert (spec.name, spec.encoder.source, spec.reranker.source) == ("tiny-run", "tiny-bert", "tiny-llama")
    assert spec.fusion.residual_gate not in {0.0, 0.3}
    card = (out / "checkpoint" / "README.md").read_text()
    assert "| lists | 12 |" in card
    assert "| tiny development | 4 | 0.5300 | 0.6300 | 0.5000 | 0.5000 |" in card
    assert "path: lists.jsonl\n" in card
    assert "encoder: tiny-bert\n" in card
    assert str(tmp_path) not in card
    merge_adapter(
        out / "checkpoint", tmp_path / "merged", encoder=tmp_path / "tiny-bert", reranker=tmp_path / "tiny-llama"
    )
    assert validate_folder(tmp_path / "merged").fusion == spec.fusion


@pytest.mark.usefixtures("better")
def test_a_drawn_decoder_comes_whole_with_an_adapter_checkpoint_that_can_be_adapted_again(
    config: Path, tmp_path: Path
) -> None:
    relational = {
        "start": {"encoder": str(tmp_path / "tiny-bert"), "reranker": "compact", "width": 48, "score_residual": 0.3,
                  "slots": {"content": "relations", "neighbors": 3}, "cosine_map": {"slope": 2, "center": 0.5}},
        "model": {"compute": {"precision": "fp32"}, "encoder": {"mode": "frozen"}, "reranker": {"mode": "full"}},
        "stages": {"reranker_alignment": {"steps": 2, "lists_per_step": 4}},
    }  # fmt: skip
    overrides = [f"{field}={json.dumps(value)}" for field, value in relational.items()]
    arguments = ["train", str(config), *(part for override in overrides for part in ("--set", override))]
    assert run(arguments) == 0
    spec = validate_adapter(tmp_path / "run" / "checkpoint")
    assert (spec.encoder.base_sha256 is None, spec.reranker.base_sha256 is None) == (False, True)
    merge_adapter(tmp_path / "run" / "checkpoint", tmp_path / "merged", encoder=tmp_path / "tiny-bert")
    merged = validate_folder(tmp_path / "merged")
    assert merged.fusion.cosine_map is not None
    before = scores(tmp_path / "merged")

    again = ["--set", f"start={{checkpoint: {tmp_path / 'merged'}}}", "--out", str(tmp_path / "again")]
    assert run([*arguments, *again]) == 0
    merge_adapter(tmp_path / "again" / "checkpoint", tmp_path / "adapted", encoder=tmp_path / "tiny-bert")
    assert encoder_identity(validate_folder(tmp_path / "adapted")) == encoder_identity(merged)
    assert any((one != other).any() for one, other in zip(before, scores(tmp_path / "adapted"), strict=True))


@pytest.mark.usefixtures("better")
def test_an_encoder_that_is_trained_beside_a_drawn_decoder_comes_with_it(config: Path, tmp_path: Path) -> None:
    """No base of the decoder could be fetched, though nothing of it was trained."""
    alone = {
        "start": {"encoder": str(tmp_path / "tiny-bert"), "reranker": "compact", "width": 48, "score_residual": 0.3,
                  "slots": {"content": "relations", "neighbors": 3}, "cosine_map": {"slope": 2, "center": 0.5}},
        "model": {"compute": {"precision": "fp32"}, "reranker": {"mode": "frozen"}},
        "stages": {"encoder_alignment": {"steps": 2, "lists_per_step": 4}},
    }  # fmt: skip
    overrides = [part for field, value in alone.items() for part in ("--set", f"{field}={json.dumps(value)}")]
    assert run(["train", str(config), *overrides]) == 0
    spec = validate_adapter(tmp_path / "run" / "checkpoint")
    assert (spec.encoder.base_sha256 is None, spec.reranker.base_sha256 is None) == (False, True)
    merge_adapter(tmp_path / "run" / "checkpoint", tmp_path / "merged", encoder=tmp_path / "tiny-bert")
    assert all(np.isfinite(one).all() for one in scores(tmp_path / "merged"))


@pytest.mark.usefixtures("better")
def test_what_an_adapter_changed_and_a_run_leaves_alone_stays_over_the_same_base(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the encoder, then a decoder on its vectors: the second checkpoint has both, and the first is not needed."""
    monkeypatch.chdir(tmp_path)  # where the base is found by its name
    compute = {"compute": {"precision": "fp32"}}
    first = {
        "start": {"encoder": "tiny-bert", "reranker": "compact", "width": 48, "score_residual": 0.3,
                  "slots": {"content": "relations", "neighbors": 3}},
        "model": {**compute, "reranker": {"mode": "frozen"}},
        "stages": {"encoder_alignment": {"steps": 2, "lists_per_step": 4}},
        "output": "first",
    }  # fmt: skip
    second = {
        "start": {"checkpoint": "first/checkpoint"},
        "model": {**compute, "encoder": {"mode": "frozen"}, "reranker": {"mode": "full"}},
        "stages": {"reranker_alignment": {"steps": 2, "lists_per_step": 4}},
        "output": "second",
    }
    for fields in (first, second):
        overrides = [part for field, value in fields.items() for part in ("--set", f"{field}={json.dumps(value)}")]
        assert run(["train", str(config), *overrides]) == 0
    before, after = validate_adapter(tmp_path / "first/checkpoint"), validate_adapter(tmp_path / "second/checkpoint")
    assert before.encoder == after.encoder
    assert read_lora(tmp_path / "second/checkpoint/encoder") is not None
    assert before.reranker.sha256 != after.reranker.sha256
    assert before.reranker.source == after.reranker.source
    assert {path.name for path in (tmp_path / "second").iterdir()}.isdisjoint({"start", "start-adapter"})

    identities = []
    for name in ("first", "second"):
        merge_adapter(tmp_path / name / "checkpoint", tmp_path / f"{name}-merged")
        identities.append(encoder_identity(validate_folder(tmp_path / f"{name}-merged")))
        shutil.rmtree(tmp_path / name)
    assert identities[0] == identities[1]


@pytest.mark.usefixtures("better")
def test_full_parameter_training_gives_a_full_checkpoint_that_scores_as_the_trained_model(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reranker in full, the encoder by LoRA; the model's own scores are caught when it is written."""
    from resrank.stack import training_run

    caught: list[np.ndarray] = []
    original = training_run.RunCheckpointWriter.write

    def write(self: Any, model: TrainableResRank, *arguments: Any) -> None:
        original(self, model, *arguments)
        tokenizers = Tokenizers.from_checkpoint(self._base, model.spec)
        table = EmbeddingTable.build(model, tokenizers, LISTS)
        caught[:] = score_lists(model, tokenizers, table, LISTS, lists_per_pass=4)

    monkeypatch.setattr(training_run.RunCheckpointWriter, "write", write)
    assert run(["train", str(config), "--set", "model.reranker.mode=full"]) == 0
    folder = tmp_path / "run" / "checkpoint"
    spec = validate_folder(folder)
    assert (spec.encoder.source, spec.reranker.source) == ("tiny-bert + tiny-run", "tiny-llama + tiny-run")
    for expected, found in zip(caught, scores(folder), strict=True):
        assert found == pytest.approx(expected, abs=2e-4)  # merged weights round once


@pytest.mark.usefixtures("better")
def test_training_goes_on_from_a_checkpoint_and_a_frozen_encoder_stays_the_same_file_by_file(
    config: Path, tmp_path: Path
) -> None:
    make_tiny_checkpoint(tmp_path / "start", query_residual=True, residual_gate=0.0, max_passages=128)
    overrides = {
        "start": f"{{checkpoint: {tmp_path / 'start'}}}",
        "model.encoder.mode": "frozen",
        "model.reranker.mode": "full",
        "stages.joint": "null",
    }
    options = [part for field, value in overrides.items() for part in ("--set", f"{field}={value}")]
    assert run(["train", str(config), *options]) == 0
    before, after = read_spec(tmp_path / "start"), validate_folder(tmp_path / "run" / "checkpoint")
    assert after.encoder == before.encoder
    assert after.reranker.sha256 != before.reranker.sha256


@pytest.mark.usefixtures("better")
def test_a_finished_run_is_replaced_by_force_alone(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--set", "stages.joint=null"]
    assert run(["train", str(config), *short, "--output", "json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["total_step"], first["kept"]) == (2, True)
    assert run(["train", str(config), *short]) == 1
    assert "holds a finished run; --force replaces it" in capsys.readouterr().err
    assert run(["train", str(config), *short, "--force", "--set", "seed=1", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["total_step"] == 2
    assert run(["train", str(config), *short, "--out", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / "result.json").is_file()


def test_an_interrupted_run_says_how_to_go_on_and_goes_on(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    better: list[DevelopmentScore],
) -> None:  # fmt: skip
    from resrank.training.stages.joint import Joint

    def interrupted(*_: object) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Joint, "step", interrupted)
        assert run(["train", str(config)]) == 130
    said = capsys.readouterr().err
    assert f"interrupted: {tmp_path / 'run' / 'checkpoint'} is the best so far" in said
    assert f"--resume goes on from {tmp_path / 'run' / 'state' / 'step-00000002'}" in said
    evaluated = len(better)
    assert run(["train", str(config), "--resume"]) == 0
    assert len(better) == evaluated + 1  # the second stage's alone
    assert run(["train", str(config), "--resume"]) == 1


@pytest.mark.usefixtures("better")
def test_a_run_does_not_go_on_from_another_start_with_the_same_weights(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from resrank.training.stages.joint import Joint

    def interrupted(*_: object) -> dict[str, float]:
        raise KeyboardInterrupt

    make_tiny_checkpoint(tmp_path / "start", query_residual=True, residual_gate=0.0, max_passages=128)
    command = ["train", str(config), "--set", f"start={{checkpoint: {tmp_path / 'start'}}}"]
    with monkeypatch.context() as patch:
        patch.setattr(Joint, "step", interrupted)
        assert run(command) == 130
    spec = read_spec(tmp_path / "start")
    write_spec(
        spec.model_copy(update={"fusion": spec.fusion.model_copy(update={"input_scale": 9.0})}), tmp_path / "start"
    )
    capsys.readouterr()
    assert run([*command, "--resume"]) == 1
    assert "its checkpoint was another at the start (sha256 " in capsys.readouterr().err


@pytest.mark.usefixtures("better")
def test_what_lora_is_trained_on_a_second_time_comes_as_a_full_checkpoint(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its base would be the first checkpoint, merged, which is nowhere to be had."""
    monkeypatch.chdir(tmp_path)  # where bases are found by name
    make_tiny_checkpoint(tmp_path / "base", query_residual=True, residual_gate=0.0, max_passages=128)
    make_tiny_adapter(tmp_path / "first", tmp_path / "base", sources=("base/encoder", "base/reranker"))
    assert run(["train", str(config), "--set", "start={checkpoint: first}", "--set", "stages.joint=null"]) == 0
    assert not is_adapter(tmp_path / "run" / "checkpoint")
    shutil.rmtree(tmp_path / "first")
    validate_folder(tmp_path / "run" / "checkpoint")


@pytest.mark.usefixtures("better")
def test_a_gate_that_is_closed_leaves_no_projector_that_nobody_reads(config: Path, tmp_path: Path) -> None:
    options = ["--slots", "both", "--neighbors", "3", "--score-residual", "0.3", "--gate", "0.5"]
    backbones = ["--encoder", str(tmp_path / "tiny-bert"), "--reranker", str(tmp_path / "tiny-llama")]
    assert run(["checkpoint", "init", *backbones, *options, "--out", str(tmp_path / "start")]) == 0
    closed = ["--set", "model.fusion.gate={start: 0, learned: false}", "--set", "stages.joint=null"]
    assert run(["train", str(config), "--set", f"start={{checkpoint: {tmp_path / 'start'}}}", *closed]) == 0
    assert not validate_adapter(tmp_path / "run" / "checkpoint").fusion.has_vector_residual


def test_a_folder_may_have_any_name(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Development, "evaluate", lambda *_, **__: one_set(0.5, 0.5, dense=0.5))
        assert run(["train", str(config), "--set", "stages.joint=null", "--out", str(tmp_path / "runs 😀")]) == 1
    assert "nothing was kept" in capsys.readouterr().err
    assert (tmp_path / "runs 😀" / "result.json").is_file()


def test_a_run_that_is_not_better_than_dense_start_ends_with_1(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Development, "evaluate", lambda *_, **__: one_set(0.5, 0.5, dense=0.5))
    assert run(["train", str(config), "--set", "stages.joint=null"]) == 1
    assert "Error: nothing was kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give a config, or --explain"),
        (["CONFIG", "--resume", "--force"], "--resume goes on with a run"),
        (["nowhere.yaml"], "nowhere.yaml: cannot be read (No such file or directory)"),
        (["CONFIG", "--set", "stages.jont=1"], "stages.jont: unknown field; did you mean joint?"),
        (["CONFIG", "--set", "data.train.0.path=nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_wrong_usage_and_configs_are_2_and_leave_nothing(
    arguments: list[str], told: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *(str(config) if word == "CONFIG" else word for word in arguments)]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_what_does_not_fit_the_start_is_told_before_candidates_are_mined(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resrank.stack.training_run.load_data", lambda *_: pytest.fail("candidates were mined"))
    closed = ["--set", "model.fusion.gate.start=0", "--set", "model.fusion.gate.learned=false"]
    assert run(["train", str(config), *closed]) == 2
    assert "model.fusion.gate.learned: false at a gate of 0" in capsys.readouterr().err


def test_a_run_does_not_start_from_what_it_would_replace(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "other" / "start"
    make_tiny_checkpoint(start)
    changes = ["--set", f"start={{checkpoint: {start}}}", "--out", str(start.parent)]
    assert run(["train", str(config), *changes]) == 2
    assert f"start.checkpoint: {start} lies in output" in capsys.readouterr().err
    inside = start / "run"
    assert run(["train", str(config), *changes[:2], "--out", str(inside)]) == 2
    assert f"output: {inside} lies in start.checkpoint" in capsys.readouterr().err
    assert not inside.exists()
    assert validate_folder(start)


def test_an_excluded_question_stops_the_run_before_it_starts(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation.jsonl").write_text(json.dumps({"query": LISTS[3].query.upper()}) + "\n")
    assert run(["train", str(config), "--set", f"data.exclude=[{tmp_path / 'evaluation.jsonl'}]"]) == 2
    assert str(tmp_path / "evaluation.jsonl") in capsys.readouterr().err


def test_explain_tells_every_field_for_people_and_for_programs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # so that no line is broken
    assert run(["train", "--explain"]) == 0
    text = capsys.readouterr().out
    assert run(["train", "--explain", "--output", "json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert {"path", "type", "default", "unit", "source", "description"} == set(fields[0])
    assert len(fields) > 100
    told = {line.partition("  ")[0] for line in text.splitlines()}
    assert {field["path"] for field in fields} <= told


def test_explaining_imports_no_torch() -> None:
    import subprocess
    import sys

    program = (
        "import sys; from resrank.stack.cli.app import run; run(['train', '--explain'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_dense_start_ranks_as_cosines_over_the_stored_vectors(tmp_path: Path) -> None:
    """Before the first step, at gate 0 with the query residual: the very order of brute-force search."""
    make_tiny_checkpoint(tmp_path / "start", query_residual=True, residual_gate=0.0, max_passages=128)
    model = TrainableResRank(
        ResRankModel.from_checkpoint(tmp_path / "start"), ModelConfig.model_validate({"compute": {"precision": "fp32"}})
    )
    tokenizers = Tokenizers.from_checkpoint(tmp_path / "start", model.spec)
    table = EmbeddingTable.build(model, tokenizers, LISTS)
    for candidates, found in zip(LISTS, scores(tmp_path / "start"), strict=True):
        vectors, query = (part[0].double() for part in table.gather([candidates], torch.device("cpu")))
        cosines = (vectors @ query / vectors.norm(dim=1) / query.norm()).numpy()
        assert found == pytest.approx(cosines, abs=1e-6)
        assert np.argsort(-found, kind="stable").tolist() == np.argsort(-cosines, kind="stable").tolist()
