from __future__ import annotations

import re
from pathlib import Path

import pytest

from resrank.benchmarks.documents import Documents
from resrank.benchmarks.names import Benchmark
from resrank.benchmarks.report import Report
from resrank.stack.machine import Machine
from support.python_files import SCRIPTS, load_python_file
from support.sample_study import sample_study

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "performance.md"


def test_every_benchmark_has_a_section_and_its_command() -> None:
    text = DOCUMENT.read_text()
    sections = dict(re.findall(r"<!-- bench: (\w+) -->\n(.*?)<!-- /bench -->", text, re.DOTALL))
    assert set(sections) == {benchmark.value for benchmark in Benchmark}
    for name in sections:
        assert re.search(rf"resrank bench [\w ]*\b{name}\b", text), f"{name}'s command is not told"


def test_columns_of_ratios_are_called_as_they_are_written() -> None:
    text = DOCUMENT.read_text()
    assert set(re.findall(r"^\| judged \|.*", text, re.MULTILINE)) == {
        "| judged | measured | against | ratio | target |  |"
    }
    side = r"[^|]*: ([\d.]+) \([^|]*"
    rows = re.findall(rf"^\|[^|]*\|{side}\|{side}\| ([\d.]+) \| [≤≥]", text, re.MULTILINE)
    assert len(rows) > 10
    for measured, against, ratio in rows:
        assert float(ratio) == pytest.approx(float(measured) / float(against), rel=0.02, abs=0.005)


def test_the_pictures_are_there() -> None:
    for picture in re.findall(r"\]\((performance/[\w-]+\.png)\)", DOCUMENT.read_text()):
        assert (DOCUMENT.parent / picture).is_file()


def test_sections_are_filled_from_a_folder_and_others_kept(tmp_path: Path) -> None:
    script = load_python_file(SCRIPTS / "update_performance.py")
    Documents(tmp_path / "out").write(Report(Machine("A CPU", 2, False, "3.11"), (sample_study(),)))
    document = tmp_path / "speed.md"
    document.write_text(
        "# Head\n<!-- bench: sample -->\nold\n<!-- /bench -->\nbetween\n<!-- bench: other -->\nkept\n<!-- /bench -->\n"
    )
    for _ in range(2):  # filling what was filled changes nothing
        assert script.update(document, tmp_path / "out") == ["sample"]
        text = document.read_text()
        assert "old" not in text
        assert "kept" in text
        assert text.count("![Latency](speed/sample-latency.png)") == 1
        assert text.startswith("# Head\n")
        assert "between" in text
    assert (tmp_path / "speed" / "sample-latency.png").is_file()
