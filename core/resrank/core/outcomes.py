"""How a call ends: the words of a load test's report and of the servers' metrics."""

from __future__ import annotations

from enum import StrEnum

from resrank.core.errors import (
    CollectionNotFoundError,
    DeadlineExceededError,
    InvalidInputError,
    ModelNotReadyError,
    QueueFullError,
    QuotaExceededError,
    ServerUnavailableError,
)


class Outcome(StrEnum):
    """How a call ended."""

    OK = "ok"
    SHED = "shed"  # a bounded queue was full
    DEADLINE = "deadline"  # its time was over
    INVALID = "invalid"  # the input was refused
    UNAVAILABLE = "unavailable"  # no server, or the model is not ready
    CANCELLED = "cancelled"  # nobody waits for it any more
    FAILED = "failed"  # anything else


_OUTCOMES: dict[type[BaseException], Outcome] = {
    QueueFullError: Outcome.SHED,
    DeadlineExceededError: Outcome.DEADLINE,
    InvalidInputError: Outcome.INVALID,
    # A caller's mistakes, which no operator is to be woken for.
    CollectionNotFoundError: Outcome.INVALID,
    QuotaExceededError: Outcome.INVALID,
    ServerUnavailableError: Outcome.UNAVAILABLE,
    ModelNotReadyError: Outcome.UNAVAILABLE,
}


def outcome_of(error: BaseException) -> Outcome:
    """The outcome of a call that raised: its error's own class decides, else its nearest base."""
    return next((_OUTCOMES[kind] for kind in type(error).__mro__ if kind in _OUTCOMES), Outcome.FAILED)
