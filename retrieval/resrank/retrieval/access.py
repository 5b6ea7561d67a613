"""Who may call: those with the bearer key, and those who can open the Unix domain socket."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health

from resrank.core.errors import InvalidInputError

_LEAST_KEY_BYTES = 16
_Context = grpc.aio.ServicerContext[Any, Any]


def read_bearer_key(path: Path) -> str:
    """Reads a key from a file, without the white space around it.

    Raises:
        InvalidInputError: The file cannot be read, or what it holds is too short or not printable ASCII.
    """
    try:
        key = path.read_text("ascii").strip()
    except OSError as error:
        raise InvalidInputError("bearer_key_file", f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError("bearer_key_file", f"{path} must hold printable ASCII") from error
    if len(key) < _LEAST_KEY_BYTES:
        raise InvalidInputError(
            "bearer_key_file", f"the key in {path} is too short, in bytes", limit=_LEAST_KEY_BYTES, value=len(key)
        )
    if not key.isprintable() or " " in key:
        raise InvalidInputError("bearer_key_file", f"{path} must hold one printable word")
    return key


class BearerInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without ``authorization: Bearer KEY``.

    Health checks are let through: they tell nothing but that the sidecar serves, and probes of container platforms
    cannot send a key.

    Args:
        key: The key.
    """

    def __init__(self, key: str) -> None:
        self._expected = f"Bearer {key}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Leaves the handlers of callers with the key alone, and has the others look where the call comes from."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method or ""
        if handler is None or method.startswith(f"/{health.SERVICE_NAME}/") or self._has_key(handler_call_details):
            return handler
        return _local_only(handler)

    def _has_key(self, details: grpc.HandlerCallDetails) -> bool:
        given = [value for name, value in details.invocation_metadata or () if name == "authorization"]
        return len(given) == 1 and hmac.compare_digest(str(given[0]).encode(), self._expected)


def _local_only(handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
    """The same handler, whose behaviour is a coroutine, for calls over the Unix domain socket; a refusal for others."""

    async def check(context: _Context) -> None:
        if not context.peer().startswith("unix:"):
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "send the sidecar's key as metadata, authorization: Bearer KEY"
            )

    inner: Any = handler
    behaviour = inner.unary_unary or inner.stream_unary or inner.unary_stream or inner.stream_stream

    async def answer(request: Any, context: _Context) -> Any:
        await check(context)
        return await behaviour(request, context)

    make: Any
    if handler.response_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
    else:
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
    guarded: grpc.RpcMethodHandler[Any, Any] = make(answer, handler.request_deserializer, handler.response_serializer)
    return guarded
