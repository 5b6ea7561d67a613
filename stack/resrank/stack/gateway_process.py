"""The HTTP gateway as a child process."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from resrank.core.addresses import bare_host, join_address
from resrank.core.errors import StackError
from resrank.core.extras import install_command
from resrank.core.server_tls import ServerTls
from resrank.stack.ports import choose_ports
from resrank.stack.process import ManagedProcess

_ASKING_S = 2.0
_PREFIX = "RESRANK_GATEWAY_"


class GatewayProcess(ManagedProcess):
    """Runs ``python -m resrank.gateway`` in front of a Triton and a sidecar of this machine.

    Args:
        triton: ``host:port`` of Triton.
        retrieval: Target of the sidecar, its Unix domain socket where it has one.
        host: Address to listen on.
        port: HTTP port; a free one when None.
        tls: Certificates for the port; None for plain text.
        keys: File of API keys; None lets everybody in.
        insecure: Whether it may listen beyond loopback without TLS or without keys.
        environment: What it is told beside this process's own environment.
        log_path: File for its log; an unnamed temporary file when None.
        on_line: Called with each line of its log, in a thread of its own.
        ready_timeout_s: How long :meth:`wait_ready` waits.

    Raises:
        StackError: The port is taken, or ``resrank[gateway]`` is not installed.
    """

    def __init__(
        self,
        triton: str,
        retrieval: str,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        tls: ServerTls | None = None,
        keys: Path | None = None,
        insecure: bool = False,
        environment: Mapping[str, str] = MappingProxyType({}),
        log_path: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        ready_timeout_s: float = 60.0,
    ) -> None:
        if any(find_spec(package) is None for package in ("fastapi", "fastapi_offline", "uvicorn")):
            raise StackError(f"the gateway is not installed here: {install_command('gateway')}")
        self.host = host
        self.tls = tls
        (self.port,) = choose_ports(host, port)
        # Keys tell callers apart as certificates do, and browsers have none of those.
        client_ca = None if tls is None or keys is not None else tls.client_ca
        settings = {
            "HOST": host,
            "PORT": str(self.port),
            "TRITON": triton,
            "RETRIEVAL": retrieval,
            "KEYS": None if keys is None else str(keys.absolute()),
            "TLS_CERTIFICATE": None if tls is None else str(tls.certificate.absolute()),
            "TLS_KEY": None if tls is None else str(tls.key.absolute()),
            "TLS_CLIENT_CA": None if client_ca is None else str(client_ca.absolute()),
            "INSECURE": "true" if insecure else None,
        }
        self._wants_certificates = client_ca is not None
        given = {f"{_PREFIX}{name}": value for name, value in settings.items() if value is not None}
        super().__init__(
            "gateway",
            [sys.executable, "-m", "resrank.gateway"],
            environment={**os.environ, **environment, **given},
            log_path=log_path,
            on_line=on_line,
            ready_timeout_s=ready_timeout_s,
        )

    @property
    def address(self) -> str:
        """``host:port`` of the HTTP endpoint."""
        return join_address(self.host, self.port)

    @property
    def url(self) -> str:
        """Of the playground."""
        return f"{'http' if self.tls is None else 'https'}://{self.address}/"

    def is_ready(self) -> bool:
        """Whether it answers; a caller without a certificate is answered, too, where it takes one."""
        connection = self._connect()
        try:
            connection.request("GET", "/v1/health/live")
            return bool(connection.getresponse().status == 200)
        except (ConnectionRefusedError, TimeoutError):  # not listening yet, or no more
            return False
        except (OSError, HTTPException):
            return self._wants_certificates  # who has none is turned away, by somebody who is there
        finally:
            connection.close()

    def _connect(self) -> HTTPConnection:
        host = bare_host(self.host)
        if self.tls is None:
            return HTTPConnection(host, self.port, timeout=_ASKING_S)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # whether it is there is all that is asked
        return HTTPSConnection(host, self.port, timeout=_ASKING_S, context=context)
