"""The gateway as a server: from start to drained stop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from resrank.core.addresses import bare_host, join_address
from resrank.core.errors import ResRankError
from resrank.core.logs import log_to_stderr
from resrank.core.signals import STOPS, ignore_stops
from resrank.core.tracing import export_traces
from resrank.gateway.app import create_app
from resrank.gateway.settings import GatewaySettings

logger = logging.getLogger("resrank.gateway")

_KEEP_ALIVE_S = 75
"""Longer than the load balancers' usual 60 s, which must be the ones to end a connection that nobody uses."""


_BACKLOG = 2048


class GatewayServer(uvicorn.Server):
    """Uvicorn that says where it listens, and whose stop is told to ``/v1/health/ready``.

    Args:
        settings: How it is set up.

    Attributes:
        address: ``host:port``, known once it listens.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._app = create_app(settings)
        self._settings = settings
        self.address = ""
        super().__init__(_config(self._app, settings))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None: :func:`serve` listens for them, and a stop by one of them is no failure."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says so on standard output."""
        await super().startup(sockets)
        if self.started and sockets:
            self.address = join_address(self._settings.host, sockets[0].getsockname()[1])
            scheme = "http" if self._settings.tls is None else "https"
            told = {
                "address": self.address,
                "tls": scheme == "https",
                "keys": self._settings.keys is not None,
                "triton": self._settings.triton,
                "retrieval": self._settings.retrieval,
            }
            logger.info("serving", extra=told)
            print(f"resrank.gateway listening on {scheme}://{self.address}", flush=True)

    def stop(self) -> None:
        """Takes no more connections; requests under way get ``drain_s``. A second call ends them."""
        if self.should_exit:
            self.force_exit = True
        self._app.state.draining = True
        self.should_exit = True


def serve(settings: GatewaySettings) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        settings: How it is set up.

    Raises:
        InvalidInputError: A file or an address of the settings is wrong.
        ResRankError: The port is taken, or nothing can listen on the host.
    """
    log_to_stderr(settings.log_level, settings.log_format)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # of requests and addresses the gateway tells itself
    export_traces("resrank-gateway")
    server = GatewayServer(settings)
    listener = listen(settings)

    async def run() -> None:
        for number in STOPS:
            asyncio.get_running_loop().add_signal_handler(number, server.stop)
        await server.serve([listener])

    asyncio.run(run())
    ignore_stops()
    logger.info("stopped", extra={"address": server.address})


def listen(settings: GatewaySettings) -> socket.socket:
    """The socket that connections come in by.

    Args:
        settings: Name host and port.

    Raises:
        ResRankError: The port is taken, or nothing can listen on the host.
    """
    host = bare_host(settings.host)
    try:
        listener = socket.create_server(
            (host, settings.port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
        )
        # Accepted connections inherit it. Without it an answer's body waits, behind its head, until the caller's kernel
        # acknowledges the head: 40 ms over a connection that is kept. asyncio sets it on sockets of its own alone.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        address = join_address(settings.host, settings.port)
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ResRankError(f"cannot listen on {address} ({reason}): choose another port or address") from error
    return listener


def _config(app: FastAPI, settings: GatewaySettings) -> uvicorn.Config:
    tls = settings.tls
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.drain_s),
        ssl_certfile=None if tls is None else str(tls.certificate),
        ssl_keyfile=None if tls is None else str(tls.key),
        ssl_ca_certs=None if tls is None or tls.client_ca is None else str(tls.client_ca),
        ssl_cert_reqs=ssl.CERT_REQUIRED if tls is not None and tls.client_ca is not None else ssl.CERT_NONE,
    )
