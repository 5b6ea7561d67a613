"""``resrank checkpoint`` as a user meets it: what it prints and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resrank.core.adapter import validate_adapter
from resrank.core.checkpoint import encoder_identity, read_spec, validate_folder
from resrank.stack.cli.app import run
from support.tiny_adapter import make_tiny_adapter
from support.tiny_checkpoint import SENTENCES, make_bert, make_llama, make_tiny_checkpoint


def test_init_makes_what_show_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bert(tmp_path / "bert", 32)
    make_llama(tmp_path / "llama", 48)
    backbones = ["--encoder", str(tmp_path / "bert"), "--reranker", str(tmp_path / "llama")]
    out = tmp_path / "out"
    options = [
        "--max-query-tokens",
        "20",
        "--max-passages",
        "10",
        "--pooling",
        "cls",
        "--gate",
        "0.5",
        "--name",
        "mine",
    ]
    assert run(["checkpoint", "init", *backbones, "--out", str(out), "--name", "mine", *options]) == 0
    assert "dense-start" not in capsys.readouterr().out

    assert run(["checkpoint", "show", str(out), "--output", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    spec = read_spec(out)
    assert (shown.pop("sha256"), shown.pop("encoder_identity")) == (spec.digest(), encoder_identity(spec))
    assert shown == spec.model_dump(mode="json")
    assert (spec.name, spec.encoder.pooling, spec.fusion.residual_gate) == ("mine", "cls", 0.5)
    assert (spec.encoder.max_query_tokens, spec.reranker.max_query_tokens, spec.reranker.max_passages) == (20, 20, 10)


def test_show_prints_prompts_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_checkpoint(tmp_path / "out", query_instruction="[bold]query:[/bold]\n")

    assert run(["checkpoint", "show", str(tmp_path / "out")]) == 0
    assert "'[bold]query:[/bold]\\n'" in capsys.readouterr().out


def test_show_refuses_changed_weights_unless_told_not_to_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_checkpoint(tmp_path / "out")
    (tmp_path / "out" / "encoder" / "extra.json").write_text("{}")

    assert run(["checkpoint", "show", str(tmp_path / "out")]) == 1
    assert "sha256" in capsys.readouterr().err
    assert run(["checkpoint", "show", str(tmp_path / "out"), "--no-verify"]) == 0


@pytest.mark.parametrize(
    "arguments", [[], ["--encoder", "a"], ["--reranker", "a"], ["--default", "--encoder", "a", "--reranker", "b"]]
)
def test_init_wants_two_backbones_or_the_default(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["checkpoint", "init", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert "either --default, or both" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_init_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()

    assert run(["checkpoint", "init", "--default", "--out", str(tmp_path / "out")]) == 1
    assert "exists already" in capsys.readouterr().err


def test_fit_cosines_tells_a_map_and_writes_it_into_a_copy_whose_indexes_stay_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESRANK_CACHE", str(tmp_path / "cache"))
    make_tiny_checkpoint(tmp_path / "start", query_residual=True, residual_gate=0.0)
    words = " ".join(SENTENCES).split()
    lines = [
        {"_id": str(row), "text": f"{' '.join(words[row % 7 : row % 7 + 3 + row % 11])} {row}"} for row in range(260)
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["checkpoint", "fit-cosines", str(tmp_path / "start"), "--corpus", str(tmp_path / "corpus.jsonl")]
    assert run([*command, "--output", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["passages"], told["questions"], told["offset"]) == (260, 300, 0.05)
    assert told["slope"] * told["deviation"] == pytest.approx(0.0595, rel=1e-2)
    assert told["center"] == pytest.approx(told["random"], abs=1e-4)

    assert run([*command, "--out", str(tmp_path / "mapped")]) == 0
    line = f"cosine_map: {{slope: {told['slope']:g}, center: {told['center']:g}, offset: 0.05}}"
    assert line in capsys.readouterr().out
    before, after = validate_folder(tmp_path / "start"), validate_folder(tmp_path / "mapped")
    assert after.fusion.cosine_map is not None
    assert after.fusion.cosine_map.slope == told["slope"]
    assert encoder_identity(before) == encoder_identity(after)

    # An adapter checkpoint stays one.
    make_tiny_adapter(tmp_path / "adapter", tmp_path / "start", sources=("start/encoder", "start/reranker"))
    monkeypatch.chdir(tmp_path)
    assert run([*command[:2], "adapter", *command[3:], "--out", "mapped-adapter"]) == 0
    plain, mapped = validate_adapter(tmp_path / "adapter"), validate_adapter(tmp_path / "mapped-adapter")
    assert mapped.fusion.cosine_map is not None
    assert mapped.model_copy(update={"fusion": plain.fusion}) == plain

    assert run([*command, "--out", str(tmp_path / "mapped")]) == 2
    capsys.readouterr()
    assert run([*command, "--out", str(tmp_path / "start" / "mapped")]) == 2
    assert "lies in the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "start" / "mapped").exists()
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:150]))
    assert run(command) == 2
    assert "corpus: too few distinct passages to fit cosines to (limit 200, got 150)" in capsys.readouterr().err
