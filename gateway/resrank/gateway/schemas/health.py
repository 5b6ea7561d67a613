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
            searches alone, and leaves the gateway ready.
    """

    object: Literal["health.response"] = "health.response"
    ready: bool
    message: str
    problems: tuple[str, ...] = ()


def health_answer(report: HealthReport) -> Health:
    """An answer in this schema.

    Args:
        report: What the client found.
    """
    return Health(ready=report.ready, message="ready" if report.ready else "not ready", problems=report.problems)
