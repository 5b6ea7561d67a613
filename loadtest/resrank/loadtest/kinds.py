"""What a load test calls, and how a call can end."""

from __future__ import annotations

from enum import StrEnum

from resrank.core.errors import (
    DeadlineExceededError,
    InvalidInputError,
    ModelNotReadyError,
    QueueFullError,
    ServerUnavailableError,
)


class CallKind(StrEnum):
    """The calls of the client that are put under load."""

    RERANK = "rerank"  # a query and embeddings
    RERANK_TEXT = "rerank_text"  # a query and texts
    SEARCH = "search"  # retrieve, then rerank
    EMBED = "embed"  # texts


class Outcome(StrEnum):
    """How a call ended."""

    OK = "ok"
    SHED = "shed"  # a bounded queue was full
    DEADLINE = "deadline"  # its time was over
    INVALID = "invalid"  # the server refused the input
    UNAVAILABLE = "unavailable"  # no server, or the model is not ready
    FAILED = "failed"  # anything else


KINDS = tuple(CallKind)
OUTCOMES = tuple(Outcome)

_OUTCOMES: dict[type[BaseException], Outcome] = {
    QueueFullError: Outcome.SHED,
    DeadlineExceededError: Outcome.DEADLINE,
    InvalidInputError: Outcome.INVALID,
    ServerUnavailableError: Outcome.UNAVAILABLE,
    ModelNotReadyError: Outcome.UNAVAILABLE,
}


def outcome_of(error: BaseException) -> Outcome:
    """The outcome of a call that raised: its error's own class decides, else its nearest base."""
    return next((_OUTCOMES[kind] for kind in type(error).__mro__ if kind in _OUTCOMES), Outcome.FAILED)
