"""What a load test calls, and how its calls can end."""

from __future__ import annotations

from enum import StrEnum

from resrank.core.outcomes import Outcome


class CallKind(StrEnum):
    """The calls of the client that are put under load."""

    RERANK = "rerank"  # a query and embeddings
    RERANK_TEXT = "rerank_text"  # a query and texts
    SEARCH = "search"  # retrieve, then rerank
    EMBED = "embed"  # texts


KINDS = tuple(CallKind)
OUTCOMES: tuple[Outcome, ...] = tuple(
    outcome for outcome in Outcome if outcome is not Outcome.CANCELLED
)  # a load test cancels nothing
