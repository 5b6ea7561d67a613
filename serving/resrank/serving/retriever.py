"""The retrieval sidecar as the ``search`` model asks it: over a Unix domain socket of the same machine, as a rule."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Protocol

import grpc

from resrank.core.addresses import NO_PROXY
from resrank.core.errors import (
    CollectionNotFoundError,
    DeadlineExceededError,
    InvalidInputError,
    QueueFullError,
    ResRankError,
    RetrievalError,
    ServerUnavailableError,
)
from resrank.core.limits import MAX_GRPC_MESSAGE_BYTES
from resrank.core.names import RETRIEVAL_SOCKET_VARIABLE, RETRIEVAL_URL_VARIABLE
from resrank.core.sidecar.v1 import retrieval_pb2
from resrank.core.sidecar.v1.retrieval_pb2_grpc import RetrievalServiceStub
from resrank.core.tracing import TRACEPARENT, write_traceparent
from resrank.core.triton_words import QUEUE_FULL, SIDECAR_UNAVAILABLE

if TYPE_CHECKING:  # exists for type checkers only
    from resrank.core.sidecar.v1.retrieval_pb2_grpc import RetrievalServiceAsyncStub

LONGEST_S = 60.0
"""What a search may take whose caller named no time: the default of the queues of Triton's models here."""

_OPTIONS = (
    *NO_PROXY,
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES),
    # Dials a sidecar that comes back within a tenth of a second to one second; gRPC's own waits go from 1 s to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class Retriever(Protocol):
    """Finds candidates."""

    async def search(
        self, request: retrieval_pb2.SearchRequest, deadline: float | None
    ) -> retrieval_pb2.SearchResponse:
        """Asks once.

        Args:
            request: The search.
            deadline: When the caller stops waiting, on the clock of :func:`time.monotonic`; None for never.

        Raises:
            ResRankError: Nothing was found out; the class says why.
        """
        ...


class SidecarRetriever:
    """Implements :class:`Retriever`.

    With gRPC's asyncio, which answered in 3.0 ms where the threaded one, called from a pool of threads, took 3.6 (100
    candidates of 384 numbers with their texts).

    Args:
        target: Where the sidecar listens; None where Triton was told of none, and then every search says so.
    """

    def __init__(self, target: str | None) -> None:
        self._target = target
        self._stub: RetrievalServiceAsyncStub | None = None

    @classmethod
    def from_environment(cls) -> SidecarRetriever:
        """Takes the socket's path, or else the address, from the environment of Triton's process."""
        socket = os.environ.get(RETRIEVAL_SOCKET_VARIABLE)
        return cls(f"unix:{socket}" if socket else os.environ.get(RETRIEVAL_URL_VARIABLE) or None)

    async def search(
        self, request: retrieval_pb2.SearchRequest, deadline: float | None
    ) -> retrieval_pb2.SearchResponse:
        """See the protocol.

        Raises:
            InvalidInputError: The sidecar refused a field.
            DeadlineExceededError: The time is over.
            QueueFullError: The sidecar sheds load.
            ServerUnavailableError: It does not answer; the connection is made again when it comes back.
            CollectionNotFoundError: There is no such collection.
            RetrievalError: It refused or failed otherwise, or there is none.
        """
        left = LONGEST_S if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceededError("before the search began")
        traceparent = write_traceparent()
        metadata = () if traceparent is None else ((TRACEPARENT, traceparent),)
        try:
            return await self._connected().Search(request, timeout=left, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self._typed(error, left) from error

    def _connected(self) -> RetrievalServiceAsyncStub:
        if self._target is None:
            raise RetrievalError(
                f"this Triton was started without {RETRIEVAL_SOCKET_VARIABLE}, the path of the socket that the sidecar "
                "listens on: set it in Triton's environment, or search with route='client'"
            )
        if self._stub is None:  # in the event loop that the channel will belong to
            channel = grpc.aio.insecure_channel(self._target, _OPTIONS)
            self._stub = RetrievalServiceStub(channel)
        return self._stub

    def _typed(self, error: grpc.aio.AioRpcError, left: float) -> ResRankError:
        details = error.details() or ""
        match error.code():
            case grpc.StatusCode.INVALID_ARGUMENT:
                return InvalidInputError.parse(details) or InvalidInputError("request", details)
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return DeadlineExceededError(f"the retrieval sidecar did not answer within {left:.3g} s")
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return QueueFullError(f"{QUEUE_FULL} of the retrieval sidecar: {details}")
            case grpc.StatusCode.NOT_FOUND:
                return CollectionNotFoundError(details)
            case grpc.StatusCode.UNAVAILABLE:
                return ServerUnavailableError(f"{SIDECAR_UNAVAILABLE} at {self._target}: {details}")
        return RetrievalError(details)
