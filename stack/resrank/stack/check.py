"""One line of a report on a machine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check ended. ``ABSENT`` is for what is useful but not needed."""

    OK = "ok"
    FAILED = "failed"
    ABSENT = "absent"


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report.

    Attributes:
        name: What was looked at.
        status: How it was found.
        detail: What was found.
        remedy: What to do; empty when there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""
