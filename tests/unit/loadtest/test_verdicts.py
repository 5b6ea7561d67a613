"""What a scenario demands, held against figures."""

from __future__ import annotations

import json

from resrank.core.outcomes import Outcome
from resrank.loadtest.figures import figures
from resrank.loadtest.kinds import CallKind
from resrank.loadtest.result import RunResult
from resrank.loadtest.scenario import Scenario
from resrank.loadtest.server_metrics import ServerMetrics
from resrank.loadtest.slo import LatencyBounds, LatencySlo, PhaseSlo, Slo
from resrank.loadtest.summary import summarize
from resrank.loadtest.verdicts import judge, judge_recovery, normal_window

from .conftest import add, record

CALLS = [(at / 10, 0.1 if at % 10 else 0.3) for at in range(100)]


def kept(slo: Slo, *, shed: int = 0) -> dict[str, bool]:
    recording = record(*CALLS)
    add(recording, [(at / 10, 0.02) for at in range(shed)], outcome=Outcome.SHED)
    return {verdict.what: verdict.kept for verdict in judge(slo, figures(recording.calls(), 0, 10), "run")}


def test_latency_bounds_are_of_calls_that_ended_well() -> None:
    def bounds(**limits: float) -> Slo:
        return Slo(latency_ms=LatencySlo(rerank=LatencyBounds(**limits)))

    assert kept(bounds(p50=101, p90=101, p95=301)) == {"rerank p50": True, "rerank p90": True, "rerank p95": True}
    assert kept(bounds(p50=99, p95=299), shed=50) == {"rerank p50": False, "rerank p95": False}


def test_a_kind_that_never_ended_well_misses_its_bound() -> None:
    slo = Slo(latency_ms=LatencySlo(search=LatencyBounds(p95=1e6)))
    assert kept(slo) == {"search p95": False}


def test_shares_goodput_and_shedding() -> None:
    assert kept(Slo(max_non_ok_share=0.1), shed=11) == {"share of calls not ok": True}
    assert kept(Slo(max_non_ok_share=0.09), shed=11) == {"share of calls not ok": False}
    assert kept(Slo(min_goodput=9.9)) == {"goodput": True}
    assert kept(Slo(min_goodput=10.1)) == {"goodput": False}
    assert kept(Slo(max_shed_p95_ms=21), shed=3) == {"time to shed p95": True}
    assert kept(Slo(max_shed_p95_ms=19), shed=3) == {"time to shed p95": False}
    assert kept(Slo(max_shed_p95_ms=19)) == {"time to shed p95": True}


def test_nothing_measured_keeps_nothing() -> None:
    nothing = figures(record().calls(), 0, 10)
    slo = Slo(max_non_ok_share=1, latency_ms=LatencySlo(rerank=LatencyBounds(p50=1)))
    assert [verdict.kept for verdict in judge(slo, nothing, "run")] == [False, False]
    assert Slo().empty
    assert not slo.empty


def test_recovery_is_bounded_and_none_is_a_miss() -> None:
    def found(seconds: float | None) -> bool:
        verdict = judge_recovery(PhaseSlo(max_recovery_s=5), seconds, "after")
        assert verdict is not None
        return verdict.kept

    assert [found(0.0), found(5.0), found(6.0), found(None)] == [True, True, False, False]
    assert judge_recovery(PhaseSlo(), 9.0, "after") is None


def run(scenario: Scenario, seconds: float, problems: tuple[str, ...] = ()) -> RunResult:
    recording = record(*[(at / 10, 0.1) for at in range(100)])
    add(recording, [(10 + at / 20, 0.5) for at in range(100)])
    add(recording, [(10 + at / 10, 0.03) for at in range(50)], outcome=Outcome.SHED)
    add(recording, [(15 + at / 10, 0.5 if at < 20 else 0.1) for at in range(100)])
    return RunResult(scenario, recording, ServerMetrics(), 0.0, seconds, 1, problems)


def test_each_phase_is_judged_by_its_own(scenario: Scenario) -> None:
    first, burst, after = scenario.load.phases
    phases = (
        first,
        burst.model_copy(update={"slo": PhaseSlo(min_goodput=15, max_shed_p95_ms=50)}),
        after.model_copy(update={"slo": PhaseSlo(max_recovery_s=2)}),
    )
    scenario = scenario.model_copy(update={"load": scenario.load.model_copy(update={"phases": phases})})
    summary = summarize(run(scenario, 25))
    assert [(verdict.window, verdict.what) for verdict in summary.verdicts] == [
        ("burst", "goodput"),
        ("burst", "time to shed p95"),
        ("after", "recovery"),
    ]
    assert summary.kept
    assert [phase.recovery_s for phase in summary.phases] == [None, None, 2.0]
    assert [phase.figures.outcomes[Outcome.SHED] for phase in summary.phases] == [0, 50, 0]
    document = json.loads(json.dumps(summary.as_json(), allow_nan=False))
    assert document["phases"][2]["recovery_s"] == 2.0
    assert [phase["name"] for phase in document["phases"]] == ["first", "burst", "after"]
    assert document["phases"][1]["time_to_shed_ms"]["p95"] == 30
    assert document["total"]["outcomes"]["shed"] == 50


def test_a_run_that_was_not_the_scenario_keeps_nothing(scenario: Scenario) -> None:
    assert summarize(run(scenario, 25)).kept
    assert not summarize(run(scenario, 25, ("1 of 2 workers were lost",))).kept


def test_only_phases_that_ran_to_their_end_are_told(scenario: Scenario) -> None:
    summary = summarize(run(scenario, 17.5))
    assert [phase.phase.name for phase in summary.phases] == ["first", "burst"]
    assert summary.total.end == 17.5


def test_the_warm_up_is_left_out(scenario: Scenario) -> None:
    summary = summarize(run(scenario.model_copy(update={"warmup_s": 12.0}), 25))
    assert summary.total.start == 12.0
    assert summary.total.calls == 60 + 30 + 100
    assert summary.total.latency[CallKind.RERANK].calls == 160
    # The warm-up swallows the first phase, so all of that is what is normal.
    assert normal_window(summary.result.scenario) == (0.0, 10.0)
