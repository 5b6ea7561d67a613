"""A scenario is right as a whole, or one sentence says what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resrank.core.errors import InvalidInputError
from resrank.loadtest.counts import Choice, Fixed, Uniform
from resrank.loadtest.kinds import CallKind
from resrank.loadtest.scenario import MAX_CALLS, OpenLoad, Scenario, load_scenario

from .conftest import ROOT, SCENARIO

PHASE = "{name: first, rate: 20, duration_s: 10}"


@pytest.mark.parametrize("path", sorted((ROOT / "loadtest" / "scenarios").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_scenarios_that_come_along_are_right(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.name == path.stem
    assert (ROOT / scenario.data.queries).is_file()
    assert scenario.duration_s <= 180


def test_every_kind_of_call_has_a_scenario() -> None:
    names = {path.stem for path in (ROOT / "loadtest" / "scenarios").glob("*.yaml")}
    assert names >= {*CallKind, "mixed", "overload"}


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("deadline_s: 2", "deadlin_s: 2", "deadlin_s: unknown field; did you mean deadline_s?"),
        ("rate: 20", "rate: 0", r"load.phases.0.rate: must be greater than 0 \(and 1 more\) \(limit 0"),
        ("rate: 60", "rate: -1", "load.phases.1.rate: must be greater than 0"),
        ("rate: 60", "rate: .nan", "load.phases.1.rate: must be a finite number"),
        ("rate: 60", "rate: many", "load.phases.1.rate: must be a valid number, not 'many'"),
        ("rate: 60", "users: 3", "load.phases.1.users: unknown field"),
        ("kind: open", "kind: ajar", "load.kind: must be one of open, closed, not 'ajar'"),
        ("rerank: 1, embed: 3", "rerank: 0", "mix: every weight is 0"),
        ("rerank: 1", "rerank: -1", "mix.rerank: must be greater than or equal to 0"),
        ("rerank: 1", "rank: 1", "mix.rank: unknown field; did you mean rerank?"),
        ("deadline_s: 2", "deadline_s: 0", r"deadline_s: must be greater than 0 \(limit 0.0, got 0\)"),
        ("deadline_s: 2", "", "deadline_s: missing"),
        ("deadline_s: 2", "deadline_s: 2\ndeadline_s: 3", "'deadline_s' is given twice"),
        ("name: burst", "name: first", "load.phases: two are named 'first'"),
        (PHASE, "", ""),
        ("duration_s: 5", "duration_s: 5, ramp_s: 6", "load.phases.1: ramp_s 6 is longer than duration_s 5"),
        ("deadline_s: 2", "deadline_s: 2\nwarmup_s: 25", "warmup_s: 25 leaves nothing of 25 s of load"),
        ("rate: 60, duration_s: 5", "rate: 90000, duration_s: 60", f"more than {MAX_CALLS} that one run keeps"),
        (
            "deadline_s: 2",
            "deadline_s: 2\nslo: {latency_ms: {search: {p95: 9}}}",
            "slo.latency_ms.search: the mix has no search",
        ),
        (PHASE, PHASE[:-1] + ", slo: {max_recovery_s: 5}}", "load.phases.0.slo.max_recovery_s: the first phase"),
        (
            "deadline_s: 2",
            "deadline_s: 2\ndata: {passages: null}",
            "data.passages: missing, and the mix reads passages",
        ),
        (
            "deadline_s: 2",
            "deadline_s: 2\ncandidates: {kind: fixed, value: 0}",
            "candidates.fixed.value|candidates.value",
        ),
        (
            "deadline_s: 2",
            "deadline_s: 2\ncandidates: {kind: uniform, low: 9, high: 3}",
            "candidates: low 9 is above high 3",
        ),
        (
            "deadline_s: 2",
            "deadline_s: 2\ncandidates: {kind: choice, values: [1, 2], weights: [1]}",
            "candidates: has 2 values and 1 weights",
        ),
        ("rerank: 1", "search: 1", "search.k: 10 is more than the candidates, 5"),
    ],
)
def test_what_is_wrong_is_one_sentence(write: Callable[[str], Path], before: str, after: str, sentence: str) -> None:
    text = SCENARIO.replace(before, after)
    if "search: 1" in after:
        text += "candidates: {kind: fixed, value: 5}\n"
    if not after and before == PHASE:
        text, sentence = "- a list\n", "must hold fields and their values, not a list"
    assert before in SCENARIO
    with pytest.raises(InvalidInputError, match=sentence) as raised:
        load_scenario(write(text))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"nowhere.yaml: cannot be read \(No such file or directory\)"):
        load_scenario(tmp_path / "nowhere.yaml")


def test_shares_add_up_and_leave_out_what_does_not_occur(scenario: Scenario) -> None:
    assert scenario.mix.shares() == {CallKind.RERANK: 0.25, CallKind.EMBED: 0.75}


def test_a_probe_is_the_same_calls_at_another_rate(scenario: Scenario) -> None:
    probe = scenario.at_rate(7, warmup_s=2, probe_s=8)
    assert isinstance(probe.load, OpenLoad)
    assert (probe.duration_s, probe.warmup_s, probe.profile.at(5), probe.profile.total) == (10, 2, 7, 70)
    assert (probe.mix, probe.deadline_s, probe.data) == (scenario.mix, scenario.deadline_s, scenario.data)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (Fixed(kind="fixed", value=7), {7: 1.0}),
        (Uniform(kind="uniform", low=2, high=5), dict.fromkeys((2, 3, 4, 5), 0.25)),
        (Choice(kind="choice", values=(10, 100), weights=(1, 3)), {10: 0.25, 100: 0.75}),
    ],
)
def test_counts_are_drawn_as_often_as_they_should(count: Fixed | Uniform | Choice, expected: dict[int, float]) -> None:
    rng = np.random.default_rng(0)
    draws = [count.draw(rng) for _ in range(4000)]
    found = {value: draws.count(value) / len(draws) for value in set(draws)}
    assert found == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 4000))
    assert count.largest == max(expected)
