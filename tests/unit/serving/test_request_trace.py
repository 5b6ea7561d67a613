"""Which trace a request belongs to, by what Triton tells and what the caller says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resrank.serving.request_trace import read_trace

TRACE, OTHER = "0af7651916cd43dd8448eb211c80319c", "1bf7651916cd43dd8448eb211c80319c"
CALLERS, TRITONS, LOST = (
    f"00-{TRACE}-b7ad6b7169203331-01",
    f"00-{TRACE}-c7ad6b7169203331-01",
    f"00-{OTHER}-01ad6b71692033aa-01",
)


class Request:
    """What Triton gives to a model: with ``told`` it has made a span of the model's own."""

    def __init__(self, told: str | None) -> None:
        self._told = told

    def trace(self) -> Request:
        return self

    def get_context(self) -> str | None:
        return None if self._told is None else json.dumps({"traceparent": self._told})


@pytest.mark.parametrize(
    ("told", "given", "traceparent", "seen"),
    [
        (TRITONS, None, TRITONS, True),
        (TRITONS, CALLERS, TRITONS, True),  # Triton's span, which is a part of the caller's
        (LOST, CALLERS, CALLERS, False),  # Triton misread the header and began a trace of its own
        (None, CALLERS, CALLERS, False),  # from model to model
        (TRITONS, "no trace", TRITONS, True),
    ],
)
def test_a_request_belongs_to_its_callers_trace(
    told: str | None, given: str | None, traceparent: str, seen: bool
) -> None:
    parameters: dict[str, Any] = {} if given is None else {"traceparent": given}
    found = read_trace(Request(told), parameters)
    assert found is not None
    assert (found.traceparent, found.seen_by_triton) == (traceparent, seen)


def test_without_a_trace_there_is_none() -> None:
    assert read_trace(Request(None), {}) is None
    assert read_trace(Request(None), {"traceparent": 7}) is None
    assert read_trace(object(), {}) is None  # of a Triton that tells of no traces
