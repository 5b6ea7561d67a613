"""How the statuses of a sidecar that is filled become errors."""

from __future__ import annotations

import pytest
from grpc import StatusCode, aio

from resrank.client import sidecar
from resrank.core.errors import (
    CollectionNotFoundError,
    InvalidInputError,
    QueueFullError,
    QuotaExceededError,
    ResRankError,
    RetrievalError,
)


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        (
            StatusCode.RESOURCE_EXHAUSTED,
            "SERVER: Received message larger than max (70000000 vs. 67108864)",
            InvalidInputError,
        ),
        (StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Sent message larger than max (9 vs. 8)", InvalidInputError),
        (StatusCode.RESOURCE_EXHAUSTED, "64 requests are in flight", QueueFullError),
        (StatusCode.RESOURCE_EXHAUSTED, "quota exceeded: 3 records", QuotaExceededError),
        (StatusCode.NOT_FOUND, "there is no collection 'a'", CollectionNotFoundError),
        (StatusCode.INTERNAL, "internal error", RetrievalError),
    ],
)
def test_each_status_becomes_its_own_error(code: StatusCode, details: str, expected: type[ResRankError]) -> None:
    error = sidecar._typed(aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details))
    assert type(error) is expected
    assert details.rsplit(": ", 1)[-1] in str(error)
