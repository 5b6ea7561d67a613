from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from resrank.benchmarks.documents import Documents, markdown
from resrank.benchmarks.measurement import BenchmarkError
from resrank.benchmarks.report import Report
from resrank.stack.machine import Machine
from support.sample_study import sample_study

MACHINE = Machine("A CPU", 2, False, "3.11.0", {"torch": "2.13.0"})


def test_a_folder_holds_json_markdown_and_a_picture_of_each_plot(tmp_path: Path) -> None:
    other = tmp_path / "out" / "other.md"
    documents = Documents(tmp_path / "out")
    other.write_text("another run's")
    documents.write(Report(MACHINE, (sample_study(),)))
    assert sorted(path.name for path in other.parent.iterdir()) == [
        "other.md",
        "sample-latency.png",
        "sample-parts.png",
        "sample-quality.png",
        "sample.json",
        "sample.md",
    ]
    found = json.loads((tmp_path / "out" / "sample.json").read_text())
    (study,) = found["benchmarks"]
    assert study["rows"] == [["ours | here", 10, 1.25], ["theirs", 1000, None]]
    assert (study["measurements"][0]["ratio"], study["measurements"][0]["passed"], found["passed"]) == (2.0, True, True)
    for name in ("sample-latency.png", "sample-parts.png", "sample-quality.png"):
        with Image.open(tmp_path / "out" / name) as image:
            colours = image.convert("RGB").getcolors(image.width * image.height)
            assert image.width >= 800
            assert len(colours) > 10  # something is drawn


def test_markdown_has_table_ratio_notes_facts_plots_and_machine() -> None:
    lines = markdown(Report(MACHINE, (sample_study(),))).splitlines()
    assert "| side | candidates | median, ms |" in lines
    assert "| --- | ---: | ---: |" in lines
    assert "| ours \\| here | 10 | 1.25 |" in lines
    assert "| theirs | 1000 | – |" in lines
    (judged,) = (line for line in lines if line.startswith("| sample, 10 candidates"))
    # Whose figure is divided by whose: this project can be on either side, so that no column is called after it.
    assert lines[lines.index(judged) - 2] == "| judged | measured | against | ratio | target |  |"
    assert judged.split(" | ")[3:] == ["2.00", "≤ 2.00", "✓ |"]
    assert "The second side takes no more than 512." in lines
    assert "sample: dimension 384." in lines
    assert "![Latency](sample-latency.png)" in lines
    assert lines[-1] == "*A CPU, 2 cores, without bf16, Python 3.11.0; torch 2.13.0.*"


def test_the_terminal_shows_the_same_table() -> None:
    console = Console(file=io.StringIO(), width=100)
    report = Report(MACHINE, (sample_study(ratio=2.5),))
    report.print(console)
    text = console.file.getvalue()
    assert "sample: Latency by size" in text
    assert [line.split() for line in text.splitlines() if "1000" in line] == [["theirs", "1000", "–"]]
    assert "2.50" in text
    assert "✗" in text
    assert not report.passed


def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchmarkError, match="cannot be written"):
        Documents(tmp_path / "file" / "out")
