from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from resrank.benchmarks import suite
from resrank.benchmarks.measurement import Bound, Measurement, Side
from resrank.benchmarks.report import Report
from resrank.stack.cli.app import run
from resrank.stack.machine import Machine


def report(*ratios: float) -> Report:
    measurements = tuple(
        Measurement(
            name=f"benchmark-{number}",
            unit="ms",
            measured=Side.of("ours", [8 * ratio]),
            baseline=Side.of("theirs", [8.0]),
            bound=Bound.AT_MOST,
            target=1.25,
            others=(Side.of("third", [9.0]),),
            facts={"GFLOP/s achieved": 321.123, "threads": 2},
        )
        for number, ratio in enumerate(ratios)
    )
    return Report(Machine("A CPU", 2, True, "3.11.0", {"openvino": "2026.1"}), measurements)


def test_one_missed_target_fails_the_report() -> None:
    assert report(1.0, 1.25).passed
    assert not report(1.0, 1.5, 0.5).passed


def test_the_table_names_machine_versions_sides_ratio_and_target() -> None:
    console = Console(file=io.StringIO(), width=100)
    report(1.0, 1.5).print(console)
    text = console.file.getvalue()
    assert "A CPU, 2 cores, with bf16, Python 3.11.0" in text
    assert "openvino 2026.1" in text
    first, second = (line for line in text.splitlines() if "ours" in line)
    assert first.split()[-4:] == ["1.00", "≤", "1.25", "✓"]
    assert second.split()[-4:] == ["1.50", "≤", "1.25", "✗"]
    assert text.count("third") == text.count("theirs") == 2
    assert "benchmark-0: GFLOP/s achieved 321, threads 2" in text


@pytest.mark.parametrize(("ratio", "code"), [(1.25, 0), (1.5, 1)])
def test_the_command_exits_with_1_when_a_target_is_missed(
    ratio: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(suite, "run_benchmarks", lambda names, *_, **__: asked.append(names) or report(ratio))
    assert run(["bench", "engine", "rerank", "--output", "json"]) == code
    assert asked == [["engine", "rerank"]]
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is (code == 0)
    (benchmark,) = found["benchmarks"]
    assert (benchmark["ratio"], benchmark["passed"]) == (ratio, code == 0)
    assert benchmark["baseline"]["median"] == 8.0
    assert found["machine"]["cpu"] == "A CPU"


def test_an_unknown_benchmark_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "everything"]) == 2
    assert "everything" in capsys.readouterr().err


def test_a_missing_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "engine", "--repository", str(tmp_path), "--checkpoint", str(tmp_path)]) == 1
    assert "resrank.json: no such file" in capsys.readouterr().err.replace("\n", "")
