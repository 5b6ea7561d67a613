"""Bodies of requests as they come in, and what becomes of those that are refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.types import Receive, Scope, Send

from resrank.gateway import error_forms
from resrank.gateway.failures import Failure
from resrank.gateway.request_facts import facts_of

_DISCARDED_BYTES = 256 * 1024 * 1024
"""Of a body that is refused this much is read and forgotten, so that its sender comes to read the answer."""

_DISCARDING_S = 10.0


class GoneError(Exception):
    """The caller has hung up."""


async def chunks(receive: Receive) -> AsyncIterator[bytes]:
    """A body in the pieces in which it comes.

    Raises:
        GoneError: It does not come to its end.
    """
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def discard(receive: Receive) -> None:
    """Reads what is left of a body, within bounds, and forgets it."""
    left = _DISCARDED_BYTES
    with contextlib.suppress(TimeoutError, GoneError):
        async with asyncio.timeout(_DISCARDING_S):
            async for chunk in chunks(receive):
                left -= len(chunk)
                if left < 0:
                    return


async def refuse(scope: Scope, receive: Receive, send: Send, failure: Failure) -> None:
    """Answers a request that is refused unread, and ends its connection.

    Args:
        scope: ASGI's.
        receive: Likewise.
        send: Likewise.
        failure: Why.
    """
    facts = facts_of(scope)
    facts.kind = failure.kind
    response = error_forms.unread_response(scope["path"], failure, facts.id)
    response.headers["Connection"] = "close"
    await response(scope, receive, send)
