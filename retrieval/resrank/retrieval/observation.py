"""What is seen of a call from outside: its span in the caller's trace, its figures, a line of the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from resrank.core.errors import CollectionNotFoundError, QuotaExceededError
from resrank.core.outcomes import Outcome
from resrank.core.tracing import TRACEPARENT, outcome_of_error, read_context, span
from resrank.retrieval.errors import CollectionExistsError, CollectionInUseError
from resrank.retrieval.metrics import SidecarMetrics
from resrank.retrieval.status import SERVICE

logger = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]

_OUTCOMES = {
    grpc.StatusCode.INVALID_ARGUMENT: Outcome.INVALID,
    grpc.StatusCode.UNAUTHENTICATED: Outcome.INVALID,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Outcome.SHED,
    grpc.StatusCode.DEADLINE_EXCEEDED: Outcome.DEADLINE,
    grpc.StatusCode.CANCELLED: Outcome.CANCELLED,
}

_MISTAKES = (CollectionNotFoundError, CollectionExistsError, CollectionInUseError, QuotaExceededError)
"""Of callers; their statuses stand for failures of the sidecar's own, too."""


class CallObserver(grpc.aio.ServerInterceptor):
    """Watches every call of the service, those that are refused before they reach it, too.

    It stands before the other interceptors, behind whom every method takes a stream of bytes
    (:class:`~resrank.retrieval.status.StatusInterceptor`). Health checks and reflection are left alone.

    Args:
        metrics: Told of each call.
    """

    def __init__(self, metrics: SidecarMetrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the service's handlers."""
        handler: Any = await continuation(handler_call_details)
        service, _, method = (handler_call_details.method or "").lstrip("/").rpartition("/")
        if handler is None or service != SERVICE:
            return handler  # type: ignore[no-any-return]
        told = dict(handler_call_details.invocation_metadata or ()).get(TRACEPARENT, "")
        parent = read_context(told if isinstance(told, str) else "")

        def serialize(response: Any) -> bytes:
            data: bytes = handler.response_serializer(response)
            self._metrics.sent(method, len(data))
            return data

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._observed(method, parent, handler.stream_stream), handler.request_deserializer, serialize
            )
        return grpc.stream_unary_rpc_method_handler(
            self._observed(method, parent, handler.stream_unary), handler.request_deserializer, serialize
        )

    def _observed(self, method: str, parent: Context, behaviour: Any) -> Any:
        async def counted(messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            async for data in messages:
                self._metrics.received(method, len(data))
                yield data

        async def answer(messages: AsyncIterator[bytes], context: _Context) -> Any:
            def outcome(error: BaseException) -> Outcome:
                return _outcome(error, context)

            started = time.perf_counter()
            attributes = {"rpc.system": "grpc", "rpc.method": method}
            with (
                self._metrics.request(method, outcome),
                span(
                    f"retrieval {method}", context=parent, kind=SpanKind.SERVER, attributes=attributes, outcome=outcome
                ),
            ):
                response = await behaviour(counted(messages), context)
                seconds = round(time.perf_counter() - started, 6)
                logger.debug("request answered", extra={"method": method, "seconds": seconds})
                return response

        return answer


def _outcome(error: BaseException, context: _Context) -> Outcome:
    """How a call ended by an exception, which is most often gRPC's own for a status that was set."""
    if isinstance(error, grpc.aio.AbortError):
        if isinstance(error.__context__, _MISTAKES):  # which was answered by this status
            return Outcome.INVALID
        return _OUTCOMES.get(_status(context), Outcome.FAILED)
    if isinstance(error, asyncio.CancelledError):  # gRPC's word for a deadline that is over, too
        left_s = context.time_remaining()
        return Outcome.DEADLINE if left_s is not None and left_s <= 0 else Outcome.CANCELLED
    return outcome_of_error(error)


def _status(context: _Context) -> grpc.StatusCode:
    code: Any = context.code()
    return code if isinstance(code, grpc.StatusCode) else next(c for c in grpc.StatusCode if c.value[0] == code)
