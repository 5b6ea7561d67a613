"""The gateway as a server: from start to drained stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from resrank.core.addresses import bare_host, join_address
from resrank.core.errors import ResRankError
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
            logger.info(
                "serving address=%s tls=%s keys=%s triton=%s retrieval=%s",
                self.address,
                scheme == "https",
                self._settings.keys is not None,
                self._settings.triton,
                self._settings.retrieval,
            )
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
    _log_to_stderr(settings.log_level.value)
    server = GatewayServer(settings)
    listener = _listen(settings)

    async def run() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.stop)
        await server.serve([listener])

    asyncio.run(run())
    logger.info("stopped address=%s", server.address)


def _listen(settings: GatewaySettings) -> socket.socket:
    host = bare_host(settings.host)
    try:
        return socket.create_server(
            (host, settings.port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
        )
    except OSError as error:
        address = join_address(settings.host, settings.port)
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ResRankError(f"cannot listen on {address} ({reason}): choose another port or address") from error


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


def _log_to_stderr(level: str) -> None:
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
