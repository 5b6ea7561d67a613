from __future__ import annotations

from pathlib import Path

import pytest

from resrank.stack.own_name import own_name


@pytest.fixture
def script(tmp_path: Path) -> Path:
    script = tmp_path / "bin" / "resrank"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    return script


def test_a_script_off_the_path_is_named_as_it_was_called(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.argv", [str(script), "demo"])
    assert own_name() == str(script)


def test_another_one_on_the_path_is_not_taken_for_it(
    script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "resrank"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(other.parent))
    monkeypatch.setattr("sys.argv", [str(script), "demo"])
    assert own_name() == str(script)


@pytest.mark.parametrize("program", ["resrank", "__main__.py"])
def test_what_the_shell_finds_needs_no_path(script: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setenv("PATH", str(script.parent))
    monkeypatch.setattr("sys.argv", [str(script.with_name(program)), "demo"])
    assert own_name() == "resrank"
