"""One budget of time for a result and for the questions that explain it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

from resrank.client.base import ClientBase
from resrank.client.deadline import Deadline
from resrank.core.fail_open import FOR_ANSWER, MODEL_FAILURES, NOTHING, OnFailure

T = TypeVar("T")


class WholeCall:
    """What a caller waits for as one call, though the client is asked several times.

    An order that is there is worth more than what its scores mean: where it may be had without the models, a question
    about it that they do not answer has the answer None, in time for the order to be sent.

    Args:
        timeout_s: The whole budget in seconds.
        on_failure: What is wanted where the models fail.
    """

    def __init__(self, timeout_s: float, on_failure: OnFailure) -> None:
        self._may_fail = on_failure is OnFailure.RETRIEVAL_ORDER
        self._deadline = Deadline(timeout_s)
        self._questions = self._deadline.leaving(FOR_ANSWER if self._may_fail else NOTHING)

    @classmethod
    def of(cls, client: ClientBase[Any], on_failure: str | None) -> Self:
        """One that begins now.

        Args:
            client: Whose timeout it has.
            on_failure: The caller's wish; None for the client's setting.

        Raises:
            InvalidInputError: There is no such wish.
        """
        return cls(client._settings.timeout_s, client._on_failure(on_failure))

    def left_s(self) -> float:
        """Seconds that the next request to the models may take.

        Raises:
            DeadlineExceededError: Nothing is left.
        """
        return self._deadline.require("the models")

    def ask(self, question: Callable[..., T], *, triton: str) -> T | None:
        """Asks about a result.

        Args:
            question: A method of a client, ``calibration`` or ``lexical_weight``.
            triton: Which one the result came from.

        Raises:
            ResRankError: What the method raises, unless the answer may be done without.
        """
        try:
            return question(triton=triton, timeout_s=self._questions.require("Triton"))
        except MODEL_FAILURES:
            if not self._may_fail:
                raise
            return None

    async def ask_async(self, question: Callable[..., Awaitable[T]], *, triton: str) -> T | None:
        """As :meth:`ask`."""
        try:
            return await question(triton=triton, timeout_s=self._questions.require("Triton"))
        except MODEL_FAILURES:
            if not self._may_fail:
                raise
            return None
