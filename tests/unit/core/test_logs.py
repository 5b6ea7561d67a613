from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest

from resrank.core.logs import LogFormat, _with_trace, log_formatter
from resrank.core.tracing import read_context, span

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def record(message: str, **fields: Any) -> logging.LogRecord:
    made = logging.getLogger("resrank.x").makeRecord("resrank.x", logging.INFO, "", 0, message, (), None, extra=fields)
    made.created, made.msecs = 0.25, 250.0
    return made


def test_a_line_for_people_has_its_fields_behind_the_words() -> None:
    line = log_formatter(LogFormat.TEXT).format(record("draining", address="[::1]:1", grace_s=10.0, index="/a b"))
    assert line == '1970-01-01T00:00:00.250Z INFO resrank.x draining address=[::1]:1 grace_s=10.0 index="/a b"'


def test_a_json_line_has_them_as_fields() -> None:
    line = log_formatter(LogFormat.JSON).format(record("draining", address="[::1]:1", grace_s=10.0, socket=None))
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "INFO",
        "logger": "resrank.x",
        "message": "draining",
        "address": "[::1]:1",
        "grace_s": 10.0,
        "socket": None,
    }


@pytest.mark.parametrize("form", list(LogFormat))
def test_what_a_caller_sent_makes_no_second_line(form: LogFormat) -> None:
    forged = 'x"\n1970-01-01T00:00:00.250Z ERROR resrank.x forged'
    line = log_formatter(form).format(record("request refused", reason=forged))
    assert "\n" not in line
    if form is LogFormat.JSON:
        assert json.loads(line)["reason"] == forged
    else:
        assert json.loads(re.search(r"reason=(.*)", line)[1]) == forged  # type: ignore[index]


def test_a_line_inside_a_trace_names_it() -> None:
    alone, inside = record("a"), record("b")
    _with_trace(alone)
    with span("request", context=read_context(f"00-{TRACE}-{SPAN}-01")):
        _with_trace(inside)
    assert "trace_id" not in log_formatter(LogFormat.TEXT).format(alone)
    assert log_formatter(LogFormat.TEXT).format(inside).endswith(f"b trace_id={TRACE} span_id={SPAN}")
