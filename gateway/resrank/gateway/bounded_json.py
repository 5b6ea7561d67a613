"""Routes whose bodies are read by :mod:`resrank.gateway.json_body`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
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


class BoundedJsonRequest(Request):
    """A request whose lists are counted before they are read."""

    async def json(self) -> Any:
        """The body.

        Raises:
            HTTPException: It is no JSON, or a list is too long; the cause says which.
        """
        settings = gateway_of(self).settings
        longest = dict.fromkeys(_DOCUMENTS, settings.max_documents) | dict.fromkeys(_INPUTS, settings.max_inputs)
        try:
            return read_json(await self.body(), longest)
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
                if isinstance(error.__cause__, RefusedError | InvalidInputError):
                    raise error.__cause__ from None
                raise

        return handle
