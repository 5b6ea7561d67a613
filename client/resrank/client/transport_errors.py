"""The one table that turns gRPC statuses and servers' words into the errors of :mod:`resrank.core.errors`.

Triton's gRPC status alone does not tell enough: a server that is down, a full queue and a request that waited too long
are all ``UNAVAILABLE``, so its words decide.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from resrank.client.calls import Call, Server
from resrank.client.deadline import Deadline
from resrank.core.errors import (
    CollectionNotFoundError,
    DeadlineExceededError,
    EncoderMismatchError,
    InvalidInputError,
    ModelNotReadyError,
    QueueFullError,
    ResRankError,
    RetrievalError,
    ServerFailedError,
    ServerUnavailableError,
)
from resrank.core.sidecar.words import COLLECTION_NOT_FOUND, ENCODER_MISMATCH
from resrank.core.triton_words import QUEUE_FULL, RETRIEVAL_FAILURE, SIDECAR_UNAVAILABLE, STOPPING, WAITED_TOO_LONG

Code = grpc.StatusCode

TOO_LARGE = "message larger than max"
"""gRPC's words, which share their status with full queues."""


@dataclass(frozen=True)
class _Failure:
    server: Server
    subject: str
    code: grpc.StatusCode
    details: str
    deadline: Deadline

    def says(self, what: str) -> str:
        return f"{self.subject}: {what} ({self.server}: {self.code.name}, {self.details})"


def _invalid_input(failure: _Failure) -> ResRankError:
    return InvalidInputError.parse(failure.details) or InvalidInputError("request", failure.details)


def too_large(details: str) -> InvalidInputError:
    """What gRPC says of a message that it does not take.

    Args:
        details: Of a status that has :data:`TOO_LARGE`.
    """
    sizes = re.search(r"\((?P<value>\d+) vs\. (?P<limit>\d+)\)", details)
    return InvalidInputError(
        "request",
        f"a gRPC message is too large, in bytes, send fewer or smaller items: {details}",
        **(sizes.groupdict() if sizes else {}),
    )


def _deadline(failure: _Failure) -> ResRankError:
    return DeadlineExceededError(failure.says(f"{failure.deadline.said} passed before the answer came"))


def _queue_timeout(failure: _Failure) -> ResRankError:
    """The wait that Triton ended was the caller's own when the caller's time is up, else the server's policy."""
    if failure.deadline.remaining_s() <= 0.02 * failure.deadline.timeout_s:
        return _deadline(failure)
    return _queue_full(failure)


def _queue_full(failure: _Failure) -> ResRankError:
    return QueueFullError(failure.says("the server sheds load; send less or add servers"))


def _not_ready(failure: _Failure) -> ResRankError:
    return ModelNotReadyError(failure.says("not loaded; check the server's model repository and its log"))


def _unavailable(failure: _Failure) -> ResRankError:
    return ServerUnavailableError(failure.says("no server answers; check the address and that it is running"))


def _stopping(failure: _Failure) -> ResRankError:
    return ServerUnavailableError(failure.says("the server is stopping, or the model failed to load"))


def _sidecar_unavailable(failure: _Failure) -> ResRankError:
    return ServerUnavailableError(failure.says("the server runs, but its sidecar does not answer; check that it runs"))


def _metadata_too_large(failure: _Failure) -> ResRankError:
    return InvalidInputError("headers", f"with the token they are larger than the server takes: {failure.details}")


def _access(failure: _Failure) -> ResRankError:
    return ResRankError(failure.says("access refused; check bearer_token, headers and the TLS certificate"))


def _another_server(failure: _Failure) -> ResRankError:
    return ResRankError(failure.says(f"what answers there is not {failure.server}; check the address"))


def _retrieval(failure: _Failure) -> ResRankError:
    return RetrievalError(failure.says("the search failed"))


def _collection_not_found(failure: _Failure) -> ResRankError:
    return CollectionNotFoundError(failure.says("no such collection; list them, or make it"))


def _encoder_mismatch(failure: _Failure) -> ResRankError:
    return EncoderMismatchError(failure.says("the search failed"))


def _unexpected(failure: _Failure) -> ResRankError:
    return ServerFailedError(failure.says("the server failed; its log has the cause"))


@dataclass(frozen=True)
class _Rule:
    server: Server | None
    code: grpc.StatusCode | None
    words: str
    error: Callable[[_Failure], ResRankError]

    def holds(self, failure: _Failure) -> bool:
        return (
            (self.server is None or self.server is failure.server)
            and (self.code is None or self.code is failure.code)
            and re.search(self.words, failure.details, re.IGNORECASE) is not None
        )


# The first rule that holds decides. `None` and "" match anything.
_RULES = (
    _Rule(None, Code.RESOURCE_EXHAUSTED, TOO_LARGE, lambda failure: too_large(failure.details)),
    _Rule(None, Code.RESOURCE_EXHAUSTED, r"metadata size exceeds", _metadata_too_large),
    # Before all rules by words: it may repeat a caller's own, which can be any.
    _Rule(None, Code.INVALID_ARGUMENT, r"", _invalid_input),
    _Rule(Server.TRITON, None, QUEUE_FULL, _queue_full),
    _Rule(Server.TRITON, None, WAITED_TOO_LONG, _queue_timeout),
    _Rule(Server.TRITON, Code.UNAVAILABLE, rf"^{SIDECAR_UNAVAILABLE}", _sidecar_unavailable),
    _Rule(Server.TRITON, Code.UNAVAILABLE, r"protocol is restricted", _access),
    # Loaded once, and unloaded when the server stops.
    _Rule(Server.TRITON, None, "|".join(STOPPING), _stopping),
    # A server that ends cancels what is still under way; calls that this client cancels itself do not come here.
    _Rule(Server.TRITON, Code.CANCELLED, r"", _stopping),
    _Rule(Server.TRITON, Code.UNAVAILABLE, r"is not ready|is not available", _not_ready),
    _Rule(Server.TRITON, Code.NOT_FOUND, r"", _not_ready),
    _Rule(Server.TRITON, Code.INTERNAL, rf"^{RETRIEVAL_FAILURE}{COLLECTION_NOT_FOUND}", _collection_not_found),
    _Rule(Server.TRITON, Code.INTERNAL, rf"^{RETRIEVAL_FAILURE}{ENCODER_MISMATCH}", _encoder_mismatch),
    _Rule(Server.TRITON, Code.INTERNAL, rf"^{RETRIEVAL_FAILURE}", _retrieval),
    _Rule(None, Code.DEADLINE_EXCEEDED, r"", _deadline),
    _Rule(None, Code.UNAVAILABLE, r"", _unavailable),
    _Rule(None, Code.RESOURCE_EXHAUSTED, r"", _queue_full),
    _Rule(None, Code.UNAUTHENTICATED, r"", _access),
    _Rule(None, Code.PERMISSION_DENIED, r"", _access),
    _Rule(None, Code.UNIMPLEMENTED, r"", _another_server),
    _Rule(Server.RETRIEVAL, Code.NOT_FOUND, r"", _collection_not_found),
    _Rule(Server.RETRIEVAL, Code.FAILED_PRECONDITION, rf"^{ENCODER_MISMATCH}", _encoder_mismatch),
    _Rule(Server.RETRIEVAL, None, r"", _retrieval),
    _Rule(None, None, r"", _unexpected),
)


def to_resrank_error(call: Call[Any], code: grpc.StatusCode, details: str | None, deadline: Deadline) -> ResRankError:
    """The typed error for a request that failed.

    Args:
        call: The request.
        code: The status it ended with.
        details: The status's message.
        deadline: The budget it ran under.

    Returns:
        An error to raise; an :class:`~resrank.core.errors.InvalidInputError` names rows as the caller's list numbers
        them.
    """
    failure = _Failure(call.server, call.subject, code, details or "", deadline)
    error = next(rule for rule in _RULES if rule.holds(failure)).error(failure)
    if isinstance(error, InvalidInputError) and call.locate is not None:
        return error.at(call.locate(error.place))
    return error
