"""What the sync and the asyncio client have in common: settings, the closed state and the checks before a call."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from opentelemetry.context import Context
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from resrank.client.calls import Call, Server
from resrank.client.deadline import Deadline
from resrank.client.facts import FactsCache
from resrank.client.metadata import Metadata, call_metadata
from resrank.client.settings import (
    DEFAULT_TIMEOUT_S,
    DEFAULT_TRITON_ADDRESS,
    ClientSettings,
    TlsConfig,
    check_timeout,
)
from resrank.client.traces import call_span, caller_context
from resrank.core.errors import InvalidInputError, ResRankError
from resrank.core.fail_open import OnFailure, Reserve
from resrank.core.search import choice
from resrank.core.sidecar.v1.retrieval_pb2_grpc import RetrievalServiceStub

C = TypeVar("C")

CLOSED = "the client is closed: make a new one"


@dataclass(frozen=True)
class CallState:
    """What all requests of one call share.

    Attributes:
        deadline: When the caller stops waiting.
        metadata: Headers and token.
        context: The trace that they belong to.
    """

    deadline: Deadline
    metadata: Metadata
    context: Context

    def leaving(self, reserve: Reserve) -> CallState:
        """The same with less time, see :meth:`Deadline.leaving`."""
        return replace(self, deadline=self.deadline.leaving(reserve))


_STUBS: dict[Server, Callable[[Any], Any]] = {
    Server.TRITON: GRPCInferenceServiceStub,
    Server.RETRIEVAL: RetrievalServiceStub,
}


class ClientBase(ABC, Generic[C]):
    """Constructor and state of a client.

    Args:
        triton: ``host:port`` of Triton's gRPC endpoint.
        retrieval: ``host:port`` of the retrieval sidecar; only ``search`` needs it.
        timeout_s: Budget of each call in seconds, all its steps and retries included, unless the call gives its own.
        max_attempts: How often a request is sent while no server answers (1: no retries). Nothing else is retried.
        max_in_flight: Requests of one call that are under way at the same time, where it takes several.
        tls: Transport security of the channel to Triton; None for plaintext.
        retrieval_tls: The same for the sidecar.
        bearer_token: Sent as ``authorization: Bearer …`` to both servers; a callable is asked once a call. Refused over
            plaintext to other machines.
        headers: Sent as metadata with every request to both servers, for instance what Triton's restricted protocols
            want: ``{"triton-grpc-protocol-KEY": "VALUE"}``.
        traceparent: Asked once a call for the W3C trace context to send along. Without it, and without the call's own,
            OpenTelemetry's current span is sent where that library is installed.
        on_failure: What ``search`` and ``rerank`` do where the models are down, full or late, unless the call says
            otherwise: raise the ``error``, or answer in ``retrieval_order``.

    Raises:
        InvalidInputError: A setting is out of its range.
    """

    def __init__(
        self,
        triton: str = DEFAULT_TRITON_ADDRESS,
        *,
        retrieval: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_attempts: int = 4,
        max_in_flight: int = 4,
        tls: TlsConfig | None = None,
        retrieval_tls: TlsConfig | None = None,
        bearer_token: str | Callable[[], str] | None = None,
        headers: Mapping[str, str] | None = None,
        traceparent: Callable[[], str | None] | None = None,
        on_failure: str = OnFailure.ERROR,
    ) -> None:
        self._settings = ClientSettings(
            triton=triton,
            retrieval=retrieval,
            timeout_s=timeout_s,
            max_attempts=max_attempts,
            max_in_flight=max_in_flight,
            tls=tls,
            retrieval_tls=retrieval_tls,
            bearer_token=bearer_token,
            headers={} if headers is None else headers,
            traceparent=traceparent,
            on_failure=choice("on_failure", OnFailure, on_failure),
        )
        self._facts: dict[str, FactsCache] = {"": FactsCache()}
        self._closed = False
        self._lock = threading.Lock()
        # Channel and stub of each server, opened by its first request: asyncio's belong to the loop that runs then.
        self._connections: dict[tuple[Server, str], tuple[C, Any]] = {}

    @contextmanager
    def _call(self, operation: str, timeout_s: float | None, traceparent: str | None) -> Iterator[CallState]:
        """One call from its first moment on, begun in the caller's own thread or task."""
        if self._closed:
            raise ResRankError(CLOSED)
        deadline = Deadline(self._settings.timeout_s if timeout_s is None else check_timeout(timeout_s))
        metadata = call_metadata(self._settings)
        with call_span(operation, caller_context(self._settings, traceparent)) as context:
            yield CallState(deadline, metadata, context)

    def _on_failure(self, wanted: str | None) -> OnFailure:
        """What a call wants where the models fail: its own word, or the client's."""
        return self._settings.on_failure if wanted is None else choice("on_failure", OnFailure, wanted)

    def _facts_of(self, triton: str = "") -> FactsCache:
        """What is known of the models of a Triton: the client's own, or with an address one that an alias names."""
        return self._facts.setdefault(triton, FactsCache())

    def _endpoint(self, call: Call[Any]) -> tuple[str, TlsConfig | None]:
        """Address and transport security of the server that a call goes to.

        Raises:
            InvalidInputError: The client was made without the sidecar's address.
        """
        if call.server is Server.TRITON:
            return call.address or self._settings.triton, self._settings.tls
        if self._settings.retrieval is None:
            raise InvalidInputError(
                "retrieval", "the client has no sidecar's address: make it with retrieval='host:port'"
            )
        return self._settings.retrieval, self._settings.retrieval_tls

    def _method(self, call: Call[Any]) -> Any:
        """The stub's method for a call; opens the channel when it is the first to this server.

        Raises:
            InvalidInputError: An alias leads to a Triton that the bearer token must not be sent to.
        """
        key = call.server, call.address
        connection = self._connections.get(key)
        if connection is None:
            with self._lock:
                if self._closed:
                    raise ResRankError(CLOSED)
                connection = self._connections.get(key)
                if connection is None:
                    address, tls = self._endpoint(call)
                    self._settings.require_encryption(address, tls)
                    channel = self._open(address, tls)
                    connection = channel, _STUBS[call.server](channel)
                    self._connections[key] = connection
        return getattr(connection[1], call.method)

    @abstractmethod
    def _open(self, address: str, tls: TlsConfig | None) -> C:
        """Opens a channel of the client's own kind."""

    def _disconnect(self) -> list[C]:
        """Marks the client as closed and gives back the channels to close."""
        with self._lock:
            self._closed = True
            channels = [channel for channel, _ in self._connections.values()]
            self._connections.clear()
        return channels
