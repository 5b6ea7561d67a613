"""Errors as gRPC statuses: the one table, and the interceptor that applies it to every method of the service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from inspect import isawaitable
from itertools import accumulate
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from resrank.core.errors import (
    CollectionNotFoundError,
    EncoderMismatchError,
    InvalidInputError,
    QueueFullError,
    QuotaExceededError,
    ResRankError,
    RetrievalError,
)
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.retrieval.errors import (
    CollectionExistsError,
    CollectionInUseError,
    SlowReaderError,
    StoreUnavailableError,
    StoreWriteError,
)
from resrank.retrieval.refusal_log import RefusalLog
from resrank.retrieval.upload_memory import UploadMemory

logger = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = pb.DESCRIPTOR.services_by_name["RetrievalService"].full_name

_LONGEST_MESSAGE = 4096
"""Bytes as gRPC writes them, with three for each of another script's; its limit for all that ends a call is 8 KiB."""
_SLOWEST_READER_S = 60
"""Whoever reads none of a backup for longer would keep a state of the store, and a connection, for good."""

# The first row that fits counts, so a class stands before the classes it comes from.
STATUS_TABLE: tuple[tuple[type[ResRankError], grpc.StatusCode], ...] = (
    (InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (CollectionNotFoundError, grpc.StatusCode.NOT_FOUND),
    (CollectionExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (CollectionInUseError, grpc.StatusCode.FAILED_PRECONDITION),
    (EncoderMismatchError, grpc.StatusCode.FAILED_PRECONDITION),
    (StoreWriteError, grpc.StatusCode.FAILED_PRECONDITION),
    (StoreUnavailableError, grpc.StatusCode.UNAVAILABLE),
    (SlowReaderError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (QuotaExceededError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (QueueFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (RetrievalError, grpc.StatusCode.INTERNAL),
)


def status_of(error: Exception) -> grpc.StatusCode:
    """The status that an error is answered with."""
    return next((code for kind, code in STATUS_TABLE if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Answers errors of every service by the table; without it gRPC says UNKNOWN to everything.

    Bytes that are no message (invalid UTF-8 in a string, say) and a call that ends without one count as invalid input,
    too: gRPC alone says UNKNOWN or INTERNAL to the first, and never answers the second. So every method is a streaming
    one to gRPC, which is no difference on the wire, and hands on bytes, which are counted before they are parsed.

    Args:
        memory: Counts them.
    """

    def __init__(self, memory: UploadMemory) -> None:
        self._memory = memory
        self._refusals = RefusalLog(logger)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps every handler."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method or ""
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._answering(method, _streaming(handler), handler), None, handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            self._answering(method, handler.stream_unary or handler.unary_unary, handler),
            None,
            handler.response_serializer,
        )

    def _answering(self, method: str, behaviour: Any, handler: grpc.RpcMethodHandler[Any, Any]) -> Any:
        async def answer(calls: AsyncIterator[bytes], context: _Context) -> Any:
            messages = self._messages(calls, handler.request_deserializer)
            try:
                async with aclosing(messages):
                    if handler.request_streaming:
                        return await behaviour(messages, context)
                    async for message in messages:
                        return await behaviour(message, context)
                    raise InvalidInputError("request", "the call ended without a message")
            except grpc.aio.AbortError:  # a service of gRPC's own has answered
                raise
            except ResRankError as error:
                code = status_of(error)
                if code is grpc.StatusCode.INTERNAL:
                    logger.exception("request failed", extra={"method": method})
                else:
                    self._refusals.refused(method, code.name, str(error))
                await context.abort(code, _short(str(error)))
            except Exception:
                logger.exception("request failed", extra={"method": method})
                await context.abort(grpc.StatusCode.INTERNAL, "internal error; the sidecar's log has the details")

        return answer

    async def _messages(self, calls: AsyncIterator[bytes], parse: Any) -> AsyncGenerator[Message, None]:
        """Each message, whose bytes count until the next one is asked for."""
        async for data in calls:
            size = len(data)
            try:
                with self._memory.holding(size):
                    try:
                        message = parse(data)
                    except DecodeError as error:
                        raise InvalidInputError("request", f"is not a valid protobuf message ({error})") from error
                    del data
                    yield message
                    del message
            finally:
                self._memory.give_back(size)


def _short(message: str) -> str:
    """What of a message a status can carry: a longer one arrives as RESOURCE_EXHAUSTED, which means "try again"."""
    sizes = accumulate(1 if " " <= character <= "~" else 3 * len(character.encode()) for character in message)
    kept = sum(1 for size in sizes if size <= _LONGEST_MESSAGE)
    return message if kept == len(message) else f"{message[:kept]}…"


def _streaming(handler: grpc.RpcMethodHandler[Any, Any]) -> Any:
    """A handler of many answers as a coroutine: gRPC's own are one or the other."""
    behaviour: Any = handler.stream_stream or handler.unary_stream

    async def answer(request: Any, context: _Context) -> None:
        answers = behaviour(request, context)
        if isawaitable(answers):
            await answers
            return
        async with aclosing(answers):  # at once where the caller goes: what it holds is let go
            async for message in answers:
                try:
                    async with asyncio.timeout(_SLOWEST_READER_S):
                        await context.write(message)
                except TimeoutError:
                    raise SlowReaderError(f"nothing was read for {_SLOWEST_READER_S} s: call again") from None

    return answer
