"""Which servers the load is sent to."""

from __future__ import annotations

import ipaddress

from pydantic import Field

from resrank.core.addresses import join_address
from resrank.core.errors import InvalidInputError
from resrank.loadtest.section import Section


class Target(Section):
    """Triton and the sidecar on one host."""

    host: str = "127.0.0.1"
    triton_port: int = Field(ge=1, le=65535)
    metrics_port: int = Field(ge=1, le=65535)
    retrieval_port: int = Field(ge=1, le=65535)

    @property
    def triton(self) -> str:
        """``host:port`` of Triton's gRPC endpoint."""
        return join_address(self.host, self.triton_port)

    @property
    def retrieval(self) -> str:
        """``host:port`` of the sidecar."""
        return join_address(self.host, self.retrieval_port)

    @property
    def metrics_url(self) -> str:
        """Triton's Prometheus page."""
        return f"http://{join_address(self.host, self.metrics_port)}/metrics"


def require_owned(host: str, *, owned: bool) -> None:
    """Refuses to load a machine that is not this one, unless its owner says so.

    Args:
        host: Name or address.
        owned: Whether the caller says that the host is theirs.

    Raises:
        InvalidInputError: Another machine, and nobody says whose.
    """
    if owned or host == "localhost":
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        pass
    raise InvalidInputError("--host", f"{host} is not this machine: give --yes-i-own-this-host to send it load")
