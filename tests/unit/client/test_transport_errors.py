"""The error table, row by row, with the texts that Triton 2.51, gRPC and the sidecar were seen to send."""

from __future__ import annotations

import pytest
from grpc import StatusCode

from resrank.client.calls import Call, Server
from resrank.client.deadline import Deadline
from resrank.client.transport_errors import to_resrank_error
from resrank.core.errors import (
    DeadlineExceededError,
    InvalidInputError,
    ModelNotReadyError,
    QueueFullError,
    ResRankError,
    RetrievalError,
    ServerFailedError,
    ServerUnavailableError,
)

TRITON, SIDECAR = Server.TRITON, Server.RETRIEVAL


def error_of(server: Server, code: StatusCode, details: str, deadline: Deadline | None = None) -> ResRankError:
    call: Call[None] = Call(server, "Method", "model 'rerank'", lambda _: None, lambda _: None)
    return to_resrank_error(call, code, details, deadline or Deadline(60.0))


@pytest.mark.parametrize(
    ("server", "code", "details", "expected"),
    [
        (TRITON, StatusCode.UNAVAILABLE, "[request id: <id_unknown>] Exceeds maximum queue size", QueueFullError),
        (
            *(TRITON, StatusCode.UNAVAILABLE),
            *("in ensemble 'rerank', [request id: <id_unknown>] Exceeds maximum queue size", QueueFullError),
        ),
        (
            *(TRITON, StatusCode.INTERNAL),
            "Model rerank - Error when running inference: [request id: <id_unknown>] Exceeds maximum queue size",
            QueueFullError,
        ),
        (TRITON, StatusCode.UNAVAILABLE, "in ensemble 'rerank', Request timeout expired", QueueFullError),
        (
            *(TRITON, StatusCode.UNAVAILABLE),
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused",
            ServerUnavailableError,
        ),
        (TRITON, StatusCode.UNAVAILABLE, "Socket closed", ServerUnavailableError),
        (
            *(TRITON, StatusCode.UNAVAILABLE),
            *("This protocol is restricted, expecting header 'triton-grpc-protocol-key'", ResRankError),
        ),
        (TRITON, StatusCode.NOT_FOUND, "Request for unknown model: 'nope' is not found", ModelNotReadyError),
        (
            *(TRITON, StatusCode.UNAVAILABLE),
            *("Request for unknown model: 'rerank' has no available versions", ServerUnavailableError),
        ),
        (
            *(TRITON, StatusCode.NOT_FOUND),
            *("Request for unknown model: 'rerank' has no available versions", ServerUnavailableError),
        ),
        (
            *(TRITON, StatusCode.UNAVAILABLE),
            "in ensemble 'rerank', [request id: <id_unknown>] Server is stopping, scheduler for model has stopped "
            "accepting new inference requests",
            ServerUnavailableError,
        ),
        (TRITON, StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceededError),
        (TRITON, StatusCode.INVALID_ARGUMENT, "in ensemble 'rerank', QUERY: empty", InvalidInputError),
        # A caller's own words may be any.
        (
            *(TRITON, StatusCode.INVALID_ARGUMENT),
            *('filter: no record has the field "Exceeds maximum queue size": a', InvalidInputError),
        ),
        (TRITON, StatusCode.INVALID_ARGUMENT, "filter: Request timeout expired: b", InvalidInputError),
        (TRITON, StatusCode.INVALID_ARGUMENT, "filter: Server exiting: c", InvalidInputError),
        (TRITON, StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Sent message larger than max (9 vs. 8)", InvalidInputError),
        (TRITON, StatusCode.INTERNAL, "Failed to process the request(s), message: ValueError: x", ServerFailedError),
        (TRITON, StatusCode.CANCELLED, "CANCELLED", ServerUnavailableError),  # at the end of a stop
        (TRITON, StatusCode.UNAUTHENTICATED, "no token", ResRankError),
        (TRITON, StatusCode.INTERNAL, "retrieval: the index belongs to another encoder", RetrievalError),
        (
            *(TRITON, StatusCode.UNAVAILABLE),
            *("the retrieval sidecar does not answer at unix:/s: Connection refused", ServerUnavailableError),
        ),
        (TRITON, StatusCode.UNAVAILABLE, "Exceeds maximum queue size of the retrieval sidecar: slow", QueueFullError),
        (SIDECAR, StatusCode.INVALID_ARGUMENT, "k: too large (limit 1000, got 2000)", InvalidInputError),
        (SIDECAR, StatusCode.FAILED_PRECONDITION, "the index belongs to another encoder", RetrievalError),
        (SIDECAR, StatusCode.RESOURCE_EXHAUSTED, "64 requests are in flight", QueueFullError),
        (SIDECAR, StatusCode.UNAVAILABLE, "Connection refused", ServerUnavailableError),
        (SIDECAR, StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceededError),
        (SIDECAR, StatusCode.INTERNAL, "internal error; the sidecar's log has the details", RetrievalError),
        (SIDECAR, StatusCode.UNKNOWN, "", RetrievalError),
        (SIDECAR, StatusCode.PERMISSION_DENIED, "no", ResRankError),
    ],
)
def test_each_status_becomes_its_own_error(
    server: Server, code: StatusCode, details: str, expected: type[ResRankError]
) -> None:
    error = error_of(server, code, details)
    assert type(error) is expected
    assert details.rsplit(": ", 1)[-1] in str(error)


def test_a_queue_timeout_is_a_deadline_when_the_callers_time_is_up() -> None:
    details = "in ensemble 'rerank', Request timeout expired"
    assert isinstance(error_of(TRITON, StatusCode.UNAVAILABLE, details, Deadline(1e-9)), DeadlineExceededError)
    assert isinstance(error_of(TRITON, StatusCode.UNAVAILABLE, details, Deadline(60.0)), QueueFullError)


def test_a_server_whose_sidecar_is_away_is_told_from_a_server_that_is_away() -> None:
    away = error_of(TRITON, StatusCode.UNAVAILABLE, "the retrieval sidecar does not answer at unix:/s: refused")
    assert "the server runs, but its sidecar does not answer" in str(away)
    assert "no server answers" in str(error_of(TRITON, StatusCode.UNAVAILABLE, "Connection refused"))


def test_a_models_invalid_input_keeps_field_limit_and_value() -> None:
    details = "in ensemble 'rerank', in ensemble 'inner', CANDIDATES: too many candidates (limit 100, got 101)"
    error = error_of(TRITON, StatusCode.INVALID_ARGUMENT, details)
    assert isinstance(error, InvalidInputError)
    assert (error.field, error.limit, error.value) == ("CANDIDATES", "100", "101")


def test_tritons_own_refusal_is_invalid_input_of_the_request() -> None:
    details = "[request id: <id_unknown>] inference request batch-size must be <= 8 for 'rerank'"
    error = error_of(TRITON, StatusCode.INVALID_ARGUMENT, details)
    assert isinstance(error, InvalidInputError)
    assert error.field == "request"
    assert "batch-size must be <= 8" in error.problem


def test_a_message_too_large_tells_the_limit_that_was_met() -> None:
    error = error_of(TRITON, StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 8)")
    assert isinstance(error, InvalidInputError)
    assert (error.field, error.limit, error.value) == ("request", "8", "9")
    assert "None" not in str(error_of(TRITON, StatusCode.RESOURCE_EXHAUSTED, "Sent message larger than max"))


def test_only_what_is_worth_sending_again_is_retryable() -> None:
    assert error_of(TRITON, StatusCode.UNAVAILABLE, "Connection refused").retryable
    assert not error_of(TRITON, StatusCode.INVALID_ARGUMENT, "QUERY: empty").retryable
    assert not error_of(TRITON, StatusCode.INTERNAL, "broken").retryable


@pytest.mark.parametrize("server", [TRITON, SIDECAR])
def test_another_server_at_the_address_is_called_that(server: Server) -> None:
    error = error_of(server, StatusCode.UNIMPLEMENTED, "Method not found!")
    assert f"what answers there is not {server}; check the address" in str(error)


def test_headers_that_are_too_large_are_no_overload() -> None:
    error = error_of(
        TRITON, StatusCode.RESOURCE_EXHAUSTED, "received metadata size exceeds hard limit (100095 vs. 65536)"
    )
    assert isinstance(error, InvalidInputError)
    assert str(error).startswith("headers: ")
