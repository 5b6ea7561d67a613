"""TCP ports of the local stack."""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import ExitStack

from resrank.core.addresses import bare_host
from resrank.core.errors import InvalidInputError, StackError

TRITON_PORT = 8001
"""Triton's own default for gRPC."""

METRICS_PORT = 8002
"""Triton's own default for Prometheus metrics."""

RETRIEVAL_PORT = 8003
"""The sidecar's, beside Triton's three."""

RETRIEVAL_METRICS_PORT = 8004
"""The sidecar's for Prometheus metrics."""


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen at the address now."""
    return _obstacle(host, port) is None


def check_host(host: str) -> None:
    """Refuses what servers would take for every address of the machine, or for none.

    Raises:
        InvalidInputError: It is empty, or holds white space.
    """
    if not bare_host(host) or host.split() != [host]:
        raise InvalidInputError("host", f"{host!r} is no address to listen on: 127.0.0.1, ::1, 0.0.0.0 or a name")


def check_distinct(*wanted: int | None) -> None:
    """Refuses a port that two servers are to listen on.

    Args:
        wanted: Ports; None asks for a free one.

    Raises:
        InvalidInputError: One is given twice.
    """
    given = [port for port in wanted if port is not None]
    if len(set(given)) < len(given):
        twice = next(port for port in given if given.count(port) > 1)
        raise InvalidInputError("ports", f"{twice} is given twice: every server needs a port of its own")


def is_every_address(host: str) -> bool:
    """Whether who listens there listens on all addresses of this machine (``0.0.0.0``, ``::``)."""
    try:
        return ipaddress.ip_address(bare_host(host)).is_unspecified
    except ValueError:  # a name
        return False


def choose_ports(host: str, *wanted: int | None) -> list[int]:
    """Fills in free ports for those not given.

    Args:
        host: Address to listen on.
        wanted: Ports; None asks for a free one.

    Returns:
        The ports, all different.

    Raises:
        InvalidInputError: A port is given twice, or the host is empty.
        StackError: A given port is taken, or nothing can listen on the host.
    """
    check_host(host)
    check_distinct(*wanted)
    ports = []
    with ExitStack() as held:
        for port in wanted:
            if obstacle := _obstacle(host, port or 0):
                if obstacle.errno == errno.EADDRINUSE:
                    raise StackError(f"port {port} on {host} is in use: stop what listens there or choose another port")
                raise StackError(f"cannot listen on {host}, port {port or 'any'} ({obstacle.strerror}): choose another")
            if port is not None:
                ports.append(port)
                continue
            # Held open until all are known, so that no two are the same.
            listener = held.enter_context(socket.socket(_family(host)))
            listener.bind((bare_host(host), 0))
            ports.append(listener.getsockname()[1])
    return ports


def _obstacle(host: str, port: int) -> OSError | None:
    with socket.socket(_family(host)) as listener:
        # As servers do: connections of an earlier server in TIME_WAIT are no obstacle.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((bare_host(host), port))
        except OSError as error:
            return error
        return None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in bare_host(host) else socket.AF_INET
