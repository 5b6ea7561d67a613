"""Words that a user of ``resrank eval`` chooses from, apart from what needs heavy imports."""

from __future__ import annotations

from enum import StrEnum


class Through(StrEnum):
    """Where the checkpoint runs."""

    STACK = "stack"
    TORCH = "torch"
