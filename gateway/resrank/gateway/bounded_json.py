"""Routes whose bodies are read by :mod:`resrank.gateway.json_body`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from resrank.core.errors import InvalidInputError
from resrank.gateway.failures import RefusedError
from resrank.gateway.gateway import gateway_of
from resrank.gateway.json_body import read_json

_DOCUMENTS = ("documents", "document_ids", "texts", "passages")
_INPUTS = ("input", "inputs")

_LONG = 256 * 1024
"""Bytes of a body that is read in a thread, so that others are answered meanwhile; shorter ones take milliseconds."""

_reader = ThreadPoolExecutor(1, thread_name_prefix="resrank-json")
"""One body at a time: the steps of reading hold the interpreter, and of several threads the others' answers would wait
for each."""


class BoundedJsonRequest(Request):
    """A request whose body is measured before it is read, and its lists before they are looked at."""

    async def json(self) -> Any:
        """The body.

        Raises:
            HTTPException: It is no JSON, or there is too much of something; the cause says which.
        """
        settings = gateway_of(self).settings
        longest = dict.fromkeys(_DOCUMENTS, settings.max_documents) | dict.fromkeys(_INPUTS, settings.max_inputs)
        body = await self.body()
        try:
            if len(body) <= _LONG:
                return read_json(body, longest)
            return await asyncio.get_running_loop().run_in_executor(_reader, read_json, body, longest)
        except (RefusedError, InvalidInputError) as error:
            raise HTTPException(422) from error  # FastAPI hides every other error


class BoundedJsonRoute(APIRoute):
    """A route of such requests."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI makes it, with another kind of request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(BoundedJsonRequest(request.scope, request.receive))
            except HTTPException as error:
                refusal = error.__cause__
                if not isinstance(refusal, RefusedError | InvalidInputError):
                    raise
            # Raised neither while the other is handled nor out of a variable that stays: the two would hold each other,
            # and in their tracebacks the body, until garbage is collected.
            try:
                raise refusal
            finally:
                del refusal

        return handle
