"""``resrank checkpoint`` as a user meets it: what it prints and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resrank.core.checkpoint import encoder_identity, read_spec
from resrank.stack.cli.app import run
from support.tiny_checkpoint import make_bert, make_llama, make_tiny_checkpoint


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
