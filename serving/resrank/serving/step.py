"""The interface between Triton's Python backend and the models' logic: requests as arrays, one outcome for each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from resrank.core.errors import ResRankError
from resrank.core.names import Tensor
from resrank.core.truncation import Truncation
from resrank.serving.request_trace import RequestTrace

Arrays: TypeAlias = Mapping[Tensor, NDArray[Any]]
Answer: TypeAlias = Arrays | Exception


@dataclass(frozen=True)
class StepRequest:
    """One Triton request.

    Attributes:
        inputs: Every input by name, the batch dimension first. Memory is Triton's: to be read, not written.
        truncate: The caller's wish to have texts over the token maximum cut instead of refused, and how.
        deadline: When the caller stops waiting, on the clock of :func:`time.monotonic`; None for never.
        parameters: All that the caller sent as request parameters, unchecked.
        wanted: The outputs that the caller asked for; empty for all.
        trace: The trace that it belongs to; None when nobody traces it.
    """

    inputs: Arrays
    truncate: bool | Truncation | None = None
    deadline: float | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    wanted: Collection[str] = ()
    trace: RequestTrace | None = None

    def wants(self, *outputs: Tensor) -> bool:
        """Whether the caller asked for one of these outputs."""
        return not self.wanted or not set(outputs).isdisjoint(self.wanted)


class CancelledRequestError(ResRankError):
    """Nobody waits for the answer any more (gRPC ``CANCELLED``, which nobody hears)."""


class Step(Protocol):
    """One model's logic."""

    def run(self, requests: Sequence[StepRequest]) -> list[Answer]:
        """Computes one batch.

        Args:
            requests: What is computed together; shapes may differ from one to the next.

        Returns:
            In the same order, each request's outputs or the error that it alone gets.
        """
        ...


def run_each(compute: Callable[[StepRequest], Arrays], requests: Sequence[StepRequest]) -> list[Answer]:
    """Computes requests one by one, so that the failure of one is not the others'.

    Args:
        compute: From one request to its outputs.
        requests: One batch.
    """
    outcomes: list[Answer] = []
    for request in requests:
        try:
            outcomes.append(compute(request))
        except Exception as error:
            outcomes.append(error)
    return outcomes
