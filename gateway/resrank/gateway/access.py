"""Lets in who sends a key."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from resrank.gateway.bodies import discard, refuse
from resrank.gateway.failures import Failure
from resrank.gateway.keys import KeyFile
from resrank.gateway.request_facts import facts_of

_OPEN = frozenset({"/", "/health", "/v1/health/live", "/v1/health/ready", "/docs", "/redoc", "/openapi.json"})
_OPEN_FOLDERS = ("/playground/", "/static-offline-docs/", "/docs/")
"""Pages that tell nothing of an index or a model, and probes, most of which send no key; one that does is told more."""

_DENIED = Failure(401, "unauthorized", "send a key of this gateway, as Authorization: Bearer KEY or X-API-Key: KEY")


class Access:
    """Notes whose key a request has, and refuses those without one, before their bodies are read.

    Args:
        app: What answers.
        keys: Who may call; None for everybody.
    """

    def __init__(self, app: ASGIApp, keys: KeyFile | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI)."""
        if scope["type"] != "http" or self._keys is None:
            await self._app(scope, receive, send)
            return
        facts = facts_of(scope)
        key = _key(Headers(scope=scope))
        facts.caller = None if key is None else self._keys.name_of(key)
        if facts.caller is None and not _is_open(scope["path"]):
            await discard(receive)
            await refuse(scope, receive, send, _DENIED)
            return
        await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(_OPEN_FOLDERS)


def _key(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key")
