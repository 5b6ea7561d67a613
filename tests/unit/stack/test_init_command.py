"""``resrank checkpoint init`` with rerankers that read relations, as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from resrank.core.adapter import validate_adapter
from resrank.core.checkpoint import SlotContent, validate_folder
from resrank.core.fusion import CosineMap
from resrank.export.adapters import merge_adapter
from resrank.stack.cli.app import run
from support.tiny_adapter import make_tiny_adapter
from support.tiny_checkpoint import make_bert, make_llama, make_tiny_checkpoint


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


@pytest.mark.parametrize("adapter", [False, True])
def test_a_checkpoints_encoder_is_taken_as_it_is(
    adapter: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where an adapter's bases are found by name
    make_tiny_checkpoint(tmp_path / "first", query_instruction="query: ", max_passage_tokens=40)
    if adapter:
        make_tiny_adapter(tmp_path / "adapter", tmp_path / "first", sources=("first/encoder", "first/reranker"))
        merge_adapter(tmp_path / "adapter", tmp_path / "whole")
    given, whole = ("adapter", "whole") if adapter else ("first", "first")
    command = ["checkpoint", "init", "--encoder", given, "--reranker", "compact"]
    limits = ["--max-query-tokens", "20"]
    assert run([*command, *limits, "--out", "out"]) == 0
    if adapter:  # over the same base
        spec = validate_adapter(tmp_path / "out")
        assert spec.encoder.base_sha256 == validate_adapter(tmp_path / "adapter").encoder.base_sha256
        assert spec.reranker.base_sha256 is None
        merge_adapter(tmp_path / "out", tmp_path / "merged")
    before, after = validate_folder(tmp_path / whole), validate_folder(tmp_path / ("merged" if adapter else "out"))
    source = after.encoder.source if adapter else before.encoder.source
    assert after.encoder == before.encoder.model_copy(update={"max_query_tokens": 20, "source": source})
    assert after.reranker.prompt is None
    assert run([*command, "--out", "same"]) == 0
    assert (validate_adapter if adapter else validate_folder)(tmp_path / "same").encoder.max_query_tokens == (
        before.encoder.max_query_tokens
    )

    for options, sentence in (
        ([*limits, "--pooling", "cls"], "pooling: the checkpoint's encoder has another (limit mean, got cls)"),
        ([*limits, "--max-passage-tokens", "41"], "max_passage_tokens: is more than the checkpoint's encoder reads"),
    ):
        assert run([*command, *options, "--out", "refused"]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "refused").exists()


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
