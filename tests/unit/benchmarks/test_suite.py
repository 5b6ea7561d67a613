from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from resrank.benchmarks import suite
from resrank.benchmarks.names import Benchmark
from resrank.benchmarks.suite import Setting, run_benchmarks
from resrank.core.errors import CheckpointError
from support.sample_study import sample_study


class FakeModule:
    """A benchmark's module that only says what it was given."""

    def __init__(self, given: dict[str, object]) -> None:
        self._given = given

    def run(self, *, corpus: Path, full: bool, notify: object) -> object:
        self._given.update(corpus=corpus, full=full)
        return sample_study()


@pytest.mark.parametrize("benchmark", Benchmark)
def test_every_registered_benchmark_asks_only_for_what_there_is(benchmark: Benchmark) -> None:
    run = importlib.import_module(f"resrank.benchmarks.{benchmark.value}").run
    parameters = inspect.signature(run).parameters
    required = {name for name, each in parameters.items() if each.default is inspect.Parameter.empty}
    assert required <= {name for name in dir(Setting) if not name.startswith("_")} | set(Setting.__dataclass_fields__)
    assert "notify" in parameters
    assert benchmark.about


def test_a_benchmark_gets_what_its_parameters_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, object] = {}
    imported = []
    monkeypatch.setattr(suite.importlib, "import_module", lambda name: imported.append(name) or FakeModule(given))
    found = []
    # The repository does not exist, and is not looked at: this benchmark asks for no deployment.
    report = run_benchmarks(
        [Benchmark.RETRIEVAL],
        Setting(tmp_path / "none", tmp_path / "none", Path("c"), full=True),
        finished=found.append,
    )
    assert imported == ["resrank.benchmarks.retrieval"]
    assert given == {"corpus": Path("c"), "full": True}
    assert [each.outcomes for each in found] == [report.outcomes]


def test_a_benchmark_that_asks_for_a_deployment_is_refused_without_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        run_benchmarks([Benchmark.ENGINE], Setting(tmp_path, tmp_path, Path("c")))


@pytest.mark.parametrize("full", [False, True])
def test_what_takes_long_runs_only_with_full_or_by_name(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(suite, "_run", lambda benchmark, *_: ran.append(benchmark) or sample_study())
    run_benchmarks([], Setting(Path(), Path(), Path(), full=full))
    assert ran == [each for each in Benchmark if full or not each.only_full]
    for benchmark in Benchmark:
        ran.clear()
        run_benchmarks([benchmark], Setting(Path(), Path(), Path()))
        assert ran == [benchmark]
