"""NIM's health, with what is in the way."""

from __future__ import annotations

from typing import Literal

from resrank.client import HealthReport
from resrank.gateway.schemas.common import Answer


class Health(Answer):
    """Whether requests can be answered.

    Attributes:
        object: NIM's word for it.
        ready: The answer.
        message: The same in a word.
        problems: What is in the way of something, one sentence each; a sidecar that does not answer is in the way of
            searches alone, and leaves the gateway ready. Where keys are set, callers without one are told only that
            there is something.
    """

    object: Literal["health.response"] = "health.response"
    ready: bool
    message: str
    problems: tuple[str, ...] = ()


_UNTOLD = ("something is in the way: with a key this page tells what",)


def health_answer(report: HealthReport, *, in_full: bool) -> Health:
    """An answer in this schema.

    Args:
        report: What the client found.
        in_full: Whether problems are told, which name addresses and have servers' own words.
    """
    problems = report.problems if in_full or not report.problems else _UNTOLD
    return Health(ready=report.ready, message="ready" if report.ready else "not ready", problems=problems)
