"""The error tree. Every failure that a caller can meet is one of these, and says what to do next."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

# Triton puts "in ensemble 'rerank', " before a composing model's words, once per level, and BLS its own sentence.
_INVALID_INPUT = re.compile(
    r"(?:in ensemble '[^']*', |Model \S+ - Error when running inference: )*"
    r"(?P<name>[A-Za-z_][\w.]*)(?P<index>(?:\[\d+\])*): "
    r"(?P<problem>.*?)(?: \(limit (?P<limit>[^,]*), got (?P<value>.*)\))?",
    re.DOTALL,
)


_LONGEST_PROBLEM = 800
_LONGEST_BOUND = 200
"""Characters. Where an input names itself in its error: a gRPC status has a few KiB, and one that is longer arrives as
another error."""


class ResRankError(Exception):
    """Root of all errors raised by ResRank.

    Attributes:
        retryable: Whether the same call may succeed later without any change by the caller.
    """

    retryable: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Place:
    """What of an input is wrong: ``QUERY``, or an element of a list, ``CANDIDATES[17]``.

    Attributes:
        name: Of the field.
        index: Of the element, outermost first; empty for the whole field.
    """

    name: str
    index: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name + "".join(f"[{number}]" for number in self.index)


class InvalidInputError(ResRankError, ValueError):
    """The caller's input breaks a rule; sending it again cannot succeed (gRPC ``INVALID_ARGUMENT``).

    Its text has one form, ``field: problem (limit L, got V)``, so that it survives the way from a Python model
    through Triton, behind which :meth:`parse` reads it back.

    Attributes:
        place: What is wrong.
        problem: What is wrong with it, in words.
        limit: The bound that was crossed, as text, if there is one.
        value: What was found instead, as text, if there is one.
    """

    def __init__(self, place: Place | str, problem: str, *, limit: object = None, value: object = None) -> None:
        self.place = place if isinstance(place, Place) else Place(place)
        self.problem = problem if len(problem) <= _LONGEST_PROBLEM else f"{problem[:_LONGEST_PROBLEM]}…"
        self.limit = None if limit is None else _told(limit)
        self.value = None if value is None else _told(value)
        bounds = "" if limit is None else f" (limit {self.limit}, got {self.value})"
        super().__init__(f"{place}: {self.problem}{bounds}")

    def __reduce__(self) -> tuple[partial[Self], tuple[()]]:
        """For pickle, which would make it again of its text alone: processes tell each other what was refused."""
        return partial(type(self), self.place, self.problem, limit=self.limit, value=self.value), ()

    @property
    def field(self) -> str:
        """The place as text, for instance ``QUERY`` or ``CANDIDATES[17]``."""
        return str(self.place)

    def at(self, place: Place) -> Self:
        """The same error about another place: what a server calls a row, its caller may number differently."""
        return type(self)(place, self.problem, limit=self.limit, value=self.value)

    @classmethod
    def parse(cls, message: str) -> Self | None:
        """Reads an error back from the text of a gRPC status.

        Args:
            message: A status message, with or without what Triton puts before the model's own words.

        Returns:
            The error, or None when the message is not of the form ``field: problem``.
        """
        match = _INVALID_INPUT.fullmatch(message.strip())
        if match is None:
            return None
        place = Place(match["name"], tuple(int(number) for number in re.findall(r"\d+", match["index"])))
        return cls(place, match["problem"], limit=match["limit"], value=match["value"])


class ServerUnavailableError(ResRankError):
    """No server answers at the address (gRPC ``UNAVAILABLE`` from the transport). Retried with back-off."""

    retryable = True


class QueueFullError(ResRankError):
    """The server sheds load: a bounded queue is full or the request waited in it too long.

    Not retried by the client itself, since retries make an overload worse: slow down or add servers.
    """

    retryable = True


class DeadlineExceededError(ResRankError):
    """The call's ``timeout_s`` passed before the answer came (gRPC ``DEADLINE_EXCEEDED``)."""

    retryable = True


class ModelNotReadyError(ResRankError):
    """The server runs, but the model is not loaded, or the repository does not have it (gRPC ``NOT_FOUND``)."""

    retryable = True


class ServerFailedError(ResRankError):
    """The server failed while it worked on the request (gRPC ``INTERNAL``, or what no rule knows); its log has why."""


class RetrievalError(ResRankError):
    """The retrieval sidecar refused or failed: another encoder's index, a failed write, an internal fault."""


class EncoderMismatchError(RetrievalError):
    """The request's vectors come from another encoder than the index's (gRPC ``FAILED_PRECONDITION``)."""


class CollectionNotFoundError(RetrievalError):
    """Neither a collection nor an alias of the index has the name (gRPC ``NOT_FOUND`` from the sidecar)."""


class QuotaExceededError(RetrievalError):
    """A collection would grow beyond its quota (gRPC ``RESOURCE_EXHAUSTED``); nothing of the batch is stored.

    Unlike a full queue it does not pass by itself: delete records, or fill a collection with a larger quota.
    """


class CheckpointError(ResRankError):
    """A checkpoint folder is not valid; the message names the file and the field."""


class ExportError(ResRankError):
    """A checkpoint could not be turned into a model repository; nothing half-written stays behind."""


class ParityError(ExportError):
    """An engine does not compute what the torch reference computes; the message holds the parity table."""


class IndexFolderError(RetrievalError):
    """An index folder cannot be opened: corrupt, foreign, owned by another process or of another encoder."""


class StackError(ResRankError):
    """A process of the local stack could not be prepared, died, or did not become ready in time."""


class TrainingError(ResRankError):
    """A training run had to stop, or had nothing worth keeping; the message says what stays on the disk."""


def _told(bound: object) -> str:
    try:
        told = str(bound)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return told if len(told) <= _LONGEST_BOUND else f"{told[:_LONGEST_BOUND]}…"
