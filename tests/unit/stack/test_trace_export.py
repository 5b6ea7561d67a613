from __future__ import annotations

from typing import Any

import pytest

from resrank.core.errors import InvalidInputError, StackError
from resrank.stack import trace_export
from resrank.stack.trace_export import TraceExport

COLLECTOR = "http://collector:4318"


def test_nothing_is_traced_where_no_collector_is_named() -> None:
    assert TraceExport.read(None, {"OTEL_TRACES_SAMPLER": "always_on"}) is None
    assert TraceExport.read(COLLECTOR, {"OTEL_SDK_DISABLED": "true"}) is None


def test_triton_is_told_in_its_own_words() -> None:
    export = TraceExport.read(COLLECTOR, {})
    assert export is not None
    assert export.environment == {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR}
    assert export.triton_flags == [
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=rate=1",
        "--trace-config=count=-1",
        "--trace-config=opentelemetry,url=http://collector:4318/v1/traces",
        "--trace-config=opentelemetry,resource=service.name=resrank-triton",
    ]


@pytest.mark.parametrize(
    "named", [{"OTEL_SERVICE_NAME": "mine"}, {"OTEL_RESOURCE_ATTRIBUTES": "a=b,service.name=mine"}]
)
def test_a_name_in_the_environment_stays(named: dict[str, str]) -> None:
    export = TraceExport.read(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR, **named})
    assert export is not None
    assert not any("resource" in flag for flag in export.triton_flags)
    assert export.environment == {}, "it is in the environment already"


@pytest.mark.parametrize(
    ("sampler", "argument", "rate"),
    [
        ("", "", 1),
        ("always_on", "", 1),
        ("parentbased_always_on", "", 1),
        ("always_off", "", 0),
        ("parentbased_always_off", "", 0),
        ("traceidratio", "", 1),
        ("traceidratio", "0.01", 100),
        ("parentbased_traceidratio", "0.3", 3),
        ("parentbased_traceidratio", "0", 0),
    ],
)
def test_a_sampler_becomes_tritons_rate(sampler: str, argument: str, rate: int) -> None:
    environment = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}
    export = TraceExport.read(COLLECTOR, environment)
    assert export is not None
    assert export.rate == rate


@pytest.mark.parametrize(
    ("environment", "field"),
    [
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, "OTEL_TRACES_SAMPLER"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "all"}, "OTEL_TRACES_SAMPLER_ARG"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1.5"}, "OTEL_TRACES_SAMPLER_ARG"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "nan"}, "OTEL_TRACES_SAMPLER_ARG"),
    ],
)
def test_a_sampler_that_triton_lacks_is_refused(environment: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        TraceExport.read(COLLECTOR, environment)
    assert caught.value.field == field


def test_without_the_extra_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        return False

    monkeypatch.setattr(trace_export, "has_exporter", absent)
    with pytest.raises(StackError, match=r"pip install .*\[otel\]"):
        TraceExport.read(COLLECTOR, {})
