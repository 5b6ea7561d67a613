"""A config is read as a user writes it, and whatever is wrong with it is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from resrank.core.errors import InvalidInputError
from resrank.training.config import StartFromBackbones, StartFromCheckpoint, TrainConfig
from resrank.training.config_file import load_config

CONFIG = """
name: tiny
output: runs/tiny
start:
  encoder: all-MiniLM-L6-v2
  reranker: SmolLM2-135M-Instruct
data:
  train:
    - {kind: listwise, path: lists.jsonl.gz}
    - {kind: beir, path: nfcorpus, weight: 2}
  development: [{hold_back: 10}]
stages:
  joint:
    steps: 10
    projectors: {learning_rate: 1e-3}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def refusal(file: Path, *overrides: str) -> str:
    with pytest.raises(InvalidInputError) as caught:
        load_config(file, overrides)
    return str(caught.value)


def test_what_is_not_written_has_its_default(file: Path) -> None:
    config = load_config(file)

    assert config.start == StartFromBackbones(encoder="all-MiniLM-L6-v2", reranker="SmolLM2-135M-Instruct")
    assert [(source.kind, source.weight) for source in config.data.train] == [("listwise", 1.0), ("beir", 2.0)]
    assert list(config.active_stages) == ["joint"]
    assert (config.seed, config.development.every_steps, config.checkpoints.keep) == (0, 100, 2)


def test_one_field_of_a_group_leaves_the_others_at_the_groups_own_defaults(file: Path) -> None:
    joint = load_config(file).stages.joint
    assert joint is not None
    # 1e-3 without a dot is text in YAML 1.1; weight_decay is 0 for projectors and 0.01 for backbones.
    assert (joint.projectors.learning_rate, joint.projectors.weight_decay) == (0.001, 0.0)
    assert joint.reranker.weight_decay == 0.01


def test_overrides_are_yaml_and_reach_into_sections_lists_and_what_is_not_written(file: Path) -> None:
    config = load_config(
        file,
        [
            "data.train.1.weight=0.5",
            "data.exclude=[a, b]",
            "stages.reranker_alignment.steps=7",
            "stages.joint=null",
            "stages.reranker_alignment.reranker.learning_rate=3e-5",
            "start={checkpoint: somewhere}",
            "model.encoder.mode=frozen",
        ],
    )

    assert config.data.train[1].weight == 0.5
    assert config.data.exclude == (Path("a"), Path("b"))
    assert list(config.active_stages) == ["reranker_alignment"]
    assert config.stages.reranker_alignment is not None
    assert config.stages.reranker_alignment.steps == 7
    assert config.stages.reranker_alignment.reranker.learning_rate == 3e-5
    assert config.start == StartFromCheckpoint(checkpoint=Path("somewhere"))


def test_a_config_written_as_json_reads_back_the_same(file: Path) -> None:
    config = load_config(file)
    assert TrainConfig.model_validate_json(config.model_dump_json(), strict=True) == config


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("stages.jont={steps: 1}", "stages.jont: unknown field; did you mean joint?"),
        ("data.train.0.pth=x", "data.train.0.pth: unknown field; did you mean path?"),
        ("data.train.0.splitt=x", "data.train.0.splitt: unknown field; did you mean limit?"),  # listwise has no split
        ("data.train.1.splitt=x", "data.train.1.splitt: unknown field; did you mean split?"),
        ("zzz=1", "zzz: unknown field; there are checkpoints, data, development, logging, model, name, output, seed, "
         "stages, start, threads"),
        ("stages.joint.steps=0", "stages.joint.steps: must be greater than or equal to 1 (limit 1, got 0)"),
        ("stages.joint.steps='10'", "stages.joint.steps: must be a valid integer, not '10'"),
        ("threads=1.5", "threads: must be a valid integer, not 1.5"),
        ("data.candidates.shuffle=.nan",
         "data.candidates.shuffle: must be less than or equal to 1 (limit 1.0, got nan)"),
        ("stages.joint.reranker.clip_norm=.inf",
         "stages.joint.reranker.clip_norm: must be a finite number, not inf"),
        ("data.train=[]", "data.train: must have at least 1 item after validation, not 0 (limit 1, got a list)"),
        ("data.train.0.kind=csv", "data.train.0.kind: must be one of listwise, beir, synthetic, not 'csv'"),
        ("data.development.0=null",
         "data.development.0: must have hold_back, or kind listwise or beir: only judged lists or lists held back "
         "of data.train can be chosen by"),
        ("data.development=[{kind: synthetic, path: corpus}]",
         "data.development.0: must have hold_back, or kind listwise or beir: only judged lists or lists held back "
         "of data.train can be chosen by"),
        ("name=null", "name: must be a valid string, not nothing"),
        ("start.checkpoint=x", "start: must have either checkpoint, or encoder and reranker"),
        ("start={encoder: x}", "start.reranker: missing"),
        ("start.encoder=compact", "start: encoder: compact reads slots alone; it can only be the reranker"),
        ("start.width=192", "start: width: has no effect, since reranker is not compact"),
        ("stages.joint={steps: 0, accumulate: 0}",
         "stages.joint.steps: must be greater than or equal to 1 (and 1 more) (limit 1, got 0)"),
        ("stages.joint=null",
         "stages: encoder_alignment, reranker_alignment and joint are all null: nothing would be trained"),
        ("data.candidates.min_passages=60", "data.candidates: min_passages (60) is above max_passages (50)"),
        ("stages.joint.accumulate=3", "stages.joint: accumulate 3 does not divide lists_per_step 16"),
        ("model.encoder.mode=frozen", "stages.joint: trains the encoder, but model.encoder.mode is frozen"),
        ("model.encoder.lora_rank=0",
         "model.encoder.lora_rank: must be greater than or equal to 1 (limit 1, got 0)"),
        ("model.encoder={mode: full, lora_rank: 8}",
         "model.encoder.lora_rank: has no effect, since model.encoder.mode is full"),
        ("model.reranker.train_token_embeddings=true",
         "model.reranker.train_token_embeddings: has no effect, since model.reranker.mode is lora"),
        ("model.reranker={mode: frozen, dropout: true}",
         "model.reranker.dropout: has no effect, since model.reranker.mode is frozen"),
        ("data.train=[{kind: synthetic, path: corpus}]",
         "data.train: corpus-synthetic is synthetic, and stages.joint needs labels: synthetic lists are made of "
         "vectors of an encoder that stays as it is"),
        ("start.max_passages=40", "data.candidates.max_passages: 50 is above start.max_passages, 40"),
        ("development.candidates=200", "development.candidates: 200 is above start.max_passages, 128"),
        ("stages.encoder_alignment={contrastive: {weight: 0}}",
         "stages.encoder_alignment.contrastive.weight: 0, but the stage has no other loss"),
        ("stages.encoder_alignment={encoder: {learning_rate: 0}}",
         "stages.encoder_alignment: every learning_rate is 0"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_one_sentence(file: Path, override: str, sentence: str) -> None:
    assert refusal(file, override) == sentence


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["model.reranker.mode=frozen", "stages.joint.reranker.learning_rate=2e-4"],
            "stages.joint.reranker: trains what model.reranker.mode frozen keeps as it is",
        ),
        (
            ["model.fusion.gate.learned=false", "stages.joint.gate.learning_rate=1e-4"],
            "stages.joint.gate: trains what model.fusion.gate.learned false keeps as it is",
        ),
        (
            ["start.query_residual=false", "model.fusion.gate.start=0"],
            "model.fusion.gate.start: 0 with start.query_residual false gives the query a zero vector",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(file: Path, overrides: list[str], sentence: str) -> None:
    load_config(file, overrides[:1])  # alone it is fine
    assert refusal(file, *overrides) == sentence


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed", "--set: must be dotted.field=value, not 'seed'"),
        ("a..b=1", "--set: must be dotted.field=value, not 'a..b=1'"),
        ("seed=[1", "--set seed: not valid YAML, line 1, column 3: expected ',' or ']', but got '<stream end>'"),
        ("seed={a: 1, a: 2}", "--set seed: not valid YAML, line 1, column 8: 'a' is given twice"),
        ("name.x=1", "--set: 'name.x=1': name is 'tiny' and has no fields"),
        (
            "data.train.2.path=x",
            "--set: 'data.train.2.path=x': data.train is a list with elements 0 to 1, '2' is none of them",
        ),
        (
            "data.train.first=x",
            "--set: 'data.train.first=x': data.train is a list with elements 0 to 1, 'first' is none of them",
        ),
    ],
)
def test_an_override_that_cannot_be_applied_is_one_sentence(file: Path, override: str, sentence: str) -> None:
    assert refusal(file, override) == sentence


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    missing, twice, plain = tmp_path / "missing.yaml", tmp_path / "twice.yaml", tmp_path / "plain.yaml"
    twice.write_text("name: a\nseed: 1\nname: b\n")
    plain.write_text("just text\n")

    assert refusal(missing) == f"{missing}: cannot be read (No such file or directory)"
    assert refusal(twice) == f"{twice}: not valid YAML, line 3, column 1: 'name' is given twice"
    assert refusal(plain) == f"{plain}: must hold fields and their values, not 'just text'"
