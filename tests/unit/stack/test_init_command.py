"""``resrank checkpoint init`` with rerankers that read relations, as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from resrank.core.checkpoint import SlotContent, validate_folder
from resrank.core.fusion import CosineMap
from resrank.stack.cli.app import run
from support.tiny_checkpoint import make_bert, make_llama


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones")
    make_bert(folder / "bert", 32)
    make_llama(folder / "llama", 48)
    return folder


def init(backbones: Path, out: Path, reranker: str, *options: str) -> int:
    command = ["checkpoint", "init", "--encoder", str(backbones / "bert"), "--reranker", reranker]
    return run([*command, "--out", str(out), *options])


def test_compact_has_what_it_needs_without_being_asked(backbones: Path, tmp_path: Path) -> None:
    assert init(backbones, tmp_path / "out", "compact", "--cosine-map", "4.84,0.72,0.05") == 0
    spec = validate_folder(tmp_path / "out")
    assert (spec.reranker.hidden_size, spec.reranker.prompt) == (96, None)
    assert (spec.reranker.slots.content, spec.reranker.slots.neighbors) == (SlotContent.RELATIONS, 16)
    assert (spec.fusion.score_residual, spec.fusion.cosine_map) == (0.3, CosineMap(4.84, 0.72, 0.05))
    assert spec.name == "bert+compact"


def test_the_first_layers_of_a_decoder_read_text_and_both(backbones: Path, tmp_path: Path) -> None:
    options = ["--layers", "1", "--slots", "both", "--neighbors", "7", "--score-residual", "0.5"]
    assert init(backbones, tmp_path / "out", str(backbones / "llama"), *options, "--lexical-weight", "0.2") == 0
    spec = validate_folder(tmp_path / "out")
    assert (spec.reranker.slots.content, spec.reranker.slots.neighbors) == (SlotContent.BOTH, 7)
    assert (spec.fusion.score_residual, spec.fusion.lexical_weight) == (0.5, 0.2)
    assert spec.reranker.source == "llama"


@pytest.mark.parametrize(
    ("reranker", "options", "sentence"),
    [
        ("compact", ["--score-residual", "0"], "reranker.prompt is null, so there is no query state"),
        ("compact", ["--width", "100"], "width: not possible (limit a multiple of 24, at most 3072, got 100)"),
        ("compact", ["--neighbors", "257"], "less than or equal to 256"),
        ("compact", ["--cosine-map", "4.84,0.72"], "write SLOPE,CENTER,OFFSET"),
        ("compact", ["--cosine-map", "0,0.72,0"], "cosine_map.slope: out of range"),
        ("llama", ["--layers", "3"], "layers: llama does not have them (limit 1 to 2, got 3)"),
        ("llama", ["--width", "96"], "--width is of --reranker compact"),
        ("llama", ["--neighbors", "40"], "--neighbors is of slots that hold relations"),
        ("compact", ["--layers", "65"], "layers: not possible (limit 1 to 64, got 65)"),
        ("compact", ["--name", "a" * 201], "options: name: String should have at most 200 characters"),
        ("compact", ["--seed", str(2**31)], "be less than or equal to 2147483647"),
        ("llama", ["--slots", "gram"], "'gram' is not one of"),
        ("llama", ["--slots", "relations", "--no-query-residual"], "residual_gate 0 without query_residual"),
        ("llama", ["--slots", "relations", "--no-query-residual", "--gate", "1"], "need fusion.query_residual"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_exit_code_2(
    backbones: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    reranker: str,
    options: list[str],
    sentence: str,
) -> None:
    named = reranker if reranker == "compact" else str(backbones / reranker)
    assert init(backbones, tmp_path / "out", named, *options) == 2
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert sentence in printed
    assert not (tmp_path / "out").exists()
