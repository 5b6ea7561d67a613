"""What the command line orders a load process to do."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from resrank.loadtest.saturation import Search
from resrank.loadtest.section import Section
from resrank.loadtest.target import Target

MASTER_PORT = 5557
"""Locust's own default."""

WEB_PORT = 8089
"""Locust's own default."""


class Role(StrEnum):
    """What a process does of a run."""

    LOCAL = "local"  # all of it
    MASTER = "master"  # commands workers and writes the report
    WORKER = "worker"  # makes the calls that a master orders


class RunOrder(Section):
    """Run a scenario."""

    kind: Literal["run"] = "run"
    scenario: Path
    target: Target
    out: Path
    role: Role = Role.LOCAL
    headless: bool = False
    workers: int = Field(default=1, ge=1)
    master_port: int = MASTER_PORT
    web_port: int = WEB_PORT


class SaturateOrder(Section):
    """Find the highest rate that keeps a scenario's objectives."""

    kind: Literal["saturate"] = "saturate"
    scenario: Path
    target: Target
    out: Path
    search: Search


class Order(Section):
    """One of them."""

    what: Annotated[RunOrder | SaturateOrder, Field(discriminator="kind")]
