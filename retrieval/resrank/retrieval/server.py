"""The sidecar as a server: store, service, health and reflection behind one port, from start to drained stop."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from resrank.core.addresses import join_address
from resrank.core.errors import RetrievalError
from resrank.core.limits import MAX_GRPC_MESSAGE_BYTES, MAX_UPLOAD_BYTES
from resrank.core.sidecar.v1 import retrieval_pb2_grpc
from resrank.core.signals import STOPS
from resrank.retrieval.access import BearerInterceptor
from resrank.retrieval.metrics import MetricsPage, SidecarMetrics
from resrank.retrieval.observation import CallObserver
from resrank.retrieval.service import RetrievalService
from resrank.retrieval.settings import SidecarSettings
from resrank.retrieval.status import SERVICE, StatusInterceptor
from resrank.retrieval.stores import open_store
from resrank.retrieval.unix_socket import UnixSocket
from resrank.retrieval.upload_memory import UploadMemory

logger = logging.getLogger(__name__)


class SidecarServer:
    """A running sidecar; an asynchronous context manager that serves between entry and exit.

    Args:
        settings: How it is set up.

    Attributes:
        address: Where it listens (``host:port``), known after entry.

    Raises:
        InvalidInputError: The path of the socket is too long.
    """

    def __init__(self, settings: SidecarSettings) -> None:
        self._settings = settings
        self._socket = None if settings.socket is None else UnixSocket(settings.socket)
        self._page: MetricsPage | None = None
        self.address = ""

    async def __aenter__(self) -> Self:
        """Opens the index and starts to serve.

        Raises:
            IndexFolderError: The folder is corrupt, foreign, not writable or owned by another process.
            InvalidInputError: FAISS refuses the kind of dense index, or no kind of store has the URL's scheme.
            RetrievalError: The store does not answer, or the port or the socket is taken.
        """
        settings = self._settings
        # In a thread: another server may take its time to answer.
        self._catalog = await asyncio.to_thread(open_store, settings)
        self._metrics = SidecarMetrics()
        self._service = RetrievalService(
            self._catalog, self._metrics, search_threads=settings.search_threads, max_inflight=settings.max_inflight
        )
        access = [] if settings.bearer_key is None else [BearerInterceptor(settings.bearer_key)]
        self._server = grpc.aio.server(
            interceptors=[CallObserver(self._metrics), *access, StatusInterceptor(UploadMemory())],
            options=[
                ("grpc.max_receive_message_length", MAX_UPLOAD_BYTES),
                ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a silent share of the requests
            ],
        )
        self._health = health.aio.HealthServicer()
        retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME),
            self._server,
        )
        try:
            port = self._open_port(join_address(settings.host, settings.port))
            if self._socket is not None:
                self._listen(self._socket)
            if settings.metrics_port is not None:
                self._page = MetricsPage(self._metrics, settings.metrics_host, settings.metrics_port)
            await self._server.start()
        except RuntimeError as error:
            await self._stop(grace_s=0)
            address = join_address(settings.host, settings.port)
            raise RetrievalError(f"cannot listen on {address}: choose another port or address") from error
        except RetrievalError:
            await self._stop(grace_s=0)
            raise
        self.address = join_address(settings.host, port)
        protected = settings.tls is not None or settings.bearer_key is not None
        # For commands on this machine, which have neither certificate nor key.
        reached = self._socket.target if protected and self._socket is not None else self.address
        self._catalog.announce(reached, transient=settings.transient)
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        logger.info(
            "serving",
            extra={
                "address": self.address,
                "tls": settings.tls is not None,
                "client_certificates": settings.tls is not None and settings.tls.client_ca is not None,
                "bearer_key": settings.bearer_key is not None,
                "socket": None if settings.socket is None else str(settings.socket),
                "store": str(settings.store),
                "metrics": None if self._page is None else self._page.url,
            },
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops taking requests, lets those in flight finish, saves the snapshot and gives the folder back."""
        await self._health.enter_graceful_shutdown()
        await self._stop(grace_s=self._settings.drain_s)
        logger.info("stopped", extra={"address": self.address})

    def _open_port(self, address: str) -> int:
        tls = self._settings.tls
        if tls is None:
            return self._server.add_insecure_port(address)
        credentials = grpc.ssl_server_credentials(
            [(tls.key.read_bytes(), tls.certificate.read_bytes())],
            root_certificates=None if tls.client_ca is None else tls.client_ca.read_bytes(),
            require_client_auth=tls.client_ca is not None,
        )
        return self._server.add_secure_port(address, credentials)

    def _listen(self, socket: UnixSocket) -> None:
        with socket.claimed():
            try:
                self._server.add_insecure_port(socket.target)
            except RuntimeError as error:
                raise RetrievalError(f"cannot listen on {socket.target}: choose another path") from error

    async def _stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)
        if self._page is not None:
            await asyncio.to_thread(self._page.close)
        if self._socket is not None:
            self._socket.remove()
        # In threads, for both may take a while and the loop must go on to end the calls.
        await asyncio.to_thread(self._service.close)
        await asyncio.to_thread(self._catalog.close)


async def serve(settings: SidecarSettings) -> None:
    """Serves until SIGTERM or SIGINT, then drains and stops. Prints the address on standard output once ready."""
    stop = asyncio.Event()
    for number in STOPS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with SidecarServer(settings) as sidecar:
        print(f"resrank.retrieval listening on {sidecar.address}", flush=True)
        await stop.wait()
        logger.info("draining", extra={"address": sidecar.address, "grace_s": settings.drain_s})
