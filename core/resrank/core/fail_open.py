"""Fail-open: what a caller gets while the models behind a search are down, full or late.

A reranker improves an order that is there already. Who asks for ``retrieval_order`` gets that order, and is told why,
in place of an error; what is wrong with the caller's own input stays an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from resrank.core.errors import (
    DeadlineExceededError,
    ModelNotReadyError,
    QueueFullError,
    ResRankError,
    ServerFailedError,
    ServerUnavailableError,
)
from resrank.core.outcomes import Outcome, outcome_of


class OnFailure(StrEnum):
    """What a caller wants where the reranker, or what it needs, gives no answer."""

    ERROR = "error"
    RETRIEVAL_ORDER = "retrieval_order"  # the candidates as they were found or given


MODEL_FAILURES: tuple[type[ResRankError], ...] = (
    ServerUnavailableError,
    ModelNotReadyError,
    QueueFullError,
    DeadlineExceededError,
    ServerFailedError,
)
"""What may be done without. A refused input, a refused caller or a closed client is none of these."""

REASONS = tuple(dict.fromkeys(outcome_of(kind()) for kind in MODEL_FAILURES))
"""What a failure's outcome may be."""


@dataclass(frozen=True)
class Failure:
    """What a result was made without, and why.

    Attributes:
        outcome: For programs: ``shed`` (a queue was full), ``deadline``, ``unavailable`` or ``failed``.
        message: For people: the error that was not raised.
    """

    outcome: Outcome
    message: str

    @classmethod
    def of(cls, error: ResRankError) -> Self:
        """What an error of a model comes to."""
        return cls(outcome_of(error), str(error))

    def __str__(self) -> str:
        return f"{self.outcome.value}: {self.message}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Reads what ``str`` wrote; None for an empty text."""
        outcome, _, message = text.partition(": ")
        return cls(Outcome(outcome), message) if text else None


@dataclass(frozen=True)
class Reserve:
    """What of a call's time a step must leave over, so that its failure can still be made up for.

    Attributes:
        share: Of the whole time.
        most_s: Seconds that are enough however long the call may take.
    """

    share: float
    most_s: float

    def seconds(self, budget_s: float) -> float:
        """Of a call that may take ``budget_s`` seconds."""
        return min(self.share * budget_s, self.most_s)


NOTHING = Reserve(0.0, 0.0)

FOR_ANSWER = Reserve(0.1, 0.25)
"""For an order that is at hand: 1000 passages with their texts are put together and sent in some 30 ms."""

FOR_RETRIEVAL = Reserve(0.3, 1.0)
"""For a search by words alone, some 10 ms in 100,000 passages, and its answer."""
