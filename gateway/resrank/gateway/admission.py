"""Who is let in: not more requests at once than can be answered, and no body that is too long or too slow."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resrank.gateway.bodies import GoneError, chunks, discard, refuse
from resrank.gateway.failures import RETRY_AFTER_S, Failure, RefusedError, too_large

_MOST_BODIES = 8
"""Of the longest that may be held at a time, all requests together."""


class Admission:
    """Admits requests and reads their bodies, before anything looks at them.

    Args:
        app: What answers.
        most: Requests with a body at once.
        max_body_bytes: Longest body.
        body_timeout_s: Seconds in which it must have come.
    """

    def __init__(self, app: ASGIApp, *, most: int, max_body_bytes: int, body_timeout_s: float) -> None:
        self._app = app
        self._most = most
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._admitted = 0
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI)."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        if self._admitted >= self._most:
            await self._refuse(scope, receive, send, _full(f"{self._most} requests are under way"))
            return
        self._admitted += 1
        held = 0
        try:
            expected = _content_length(scope)
            if expected is not None and expected > self._max_body_bytes:
                raise RefusedError(too_large(self._max_body_bytes, expected))
            held = self._max_body_bytes if expected is None else expected
            if self._held_bytes + held > _MOST_BODIES * self._max_body_bytes:
                held = 0
                raise RefusedError(_full("bodies of other requests take all the memory there is for them"))
            self._held_bytes += held
            body = await self._read(receive)
            self._held_bytes -= held - len(body)  # of one whose length was not told, what it has turned out to be
            held = len(body)
            await self._app(scope, _replay(body, receive), send)
        except RefusedError as error:
            await self._refuse(scope, receive, send, error.failure)
        except GoneError:
            return
        finally:
            self._held_bytes -= held
            self._admitted -= 1

    async def _read(self, receive: Receive) -> bytes:
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._body_timeout_s):
                async for piece in chunks(receive):
                    size += len(piece)
                    if size > self._max_body_bytes:
                        raise RefusedError(too_large(self._max_body_bytes, None))
                    pieces.append(piece)
        except TimeoutError:
            message = f"body: did not come within {self._body_timeout_s:g} s"
            raise RefusedError(Failure(408, "body_timeout", message, "body")) from None
        return b"".join(pieces)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, failure: Failure) -> None:
        if failure.status != 408:
            await discard(receive)
        await refuse(scope, receive, send, failure)


def _full(why: str) -> Failure:
    return Failure(429, "queue_full", f"the gateway is full: {why}; come again", retry_after_s=RETRY_AFTER_S)


def _content_length(scope: Scope) -> int | None:
    value = Headers(scope=scope).get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None


def _replay(body: bytes, receive: Receive) -> Receive:
    """What the app receives: the body at once, then whatever comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
