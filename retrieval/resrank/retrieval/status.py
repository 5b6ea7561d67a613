"""Errors as gRPC statuses: the one table, and the interceptor that applies it to every method of the service."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from resrank.core.errors import InvalidInputError, QueueFullError, ResRankError, RetrievalError
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.retrieval.errors import EncoderMismatchError, StoreWriteError

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["RetrievalService"].full_name

# The first row that fits counts, so a class stands before the classes it comes from.
STATUS_TABLE: tuple[tuple[type[ResRankError], grpc.StatusCode], ...] = (
    (InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (EncoderMismatchError, grpc.StatusCode.FAILED_PRECONDITION),
    (StoreWriteError, grpc.StatusCode.FAILED_PRECONDITION),
    (QueueFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (RetrievalError, grpc.StatusCode.INTERNAL),
)


def status_of(error: Exception) -> grpc.StatusCode:
    """The status that an error is answered with."""
    return next((code for kind, code in STATUS_TABLE if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


class _Undecodable:
    """Stands for a request whose bytes are no message, until the handler may answer."""

    def __init__(self, error: DecodeError) -> None:
        self.error = InvalidInputError("request", f"is not a valid protobuf message ({error})")


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Answers errors of the retrieval service by the table; without it gRPC says UNKNOWN to everything.

    Bytes that are no message (invalid UTF-8 in a string, say) count as invalid input too; gRPC alone says INTERNAL.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the handlers of the retrieval service and leaves others alone."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method or ""
        if handler is None or not method.startswith(f"/{SERVICE}/"):
            return handler
        deserializer = _tolerant(handler.request_deserializer)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                _answering(method, handler.stream_unary, _checked_stream), deserializer, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            _answering(method, handler.unary_unary, _checked), deserializer, handler.response_serializer
        )


def _tolerant(deserializer: Any) -> Callable[[bytes], Message | _Undecodable]:
    def deserialize(data: bytes) -> Message | _Undecodable:
        try:
            message: Message = deserializer(data)
        except DecodeError as error:
            return _Undecodable(error)
        return message

    return deserialize


def _checked(request: Any) -> Any:
    if isinstance(request, _Undecodable):
        raise request.error
    return request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)


def _answering(method: str, behaviour: Any, check: Callable[[Any], Any]) -> Any:
    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(check(request), context)
        except ResRankError as error:
            code = status_of(error)
            if code is grpc.StatusCode.INTERNAL:
                logger.exception("request failed method=%s", method)
            else:
                logger.info("request refused method=%s status=%s reason=%s", method, code.name, error)
            await context.abort(code, str(error))
        except Exception:
            logger.exception("request failed method=%s", method)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; the sidecar's log has the details")

    return answer
