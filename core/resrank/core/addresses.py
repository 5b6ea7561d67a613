"""Addresses of servers: what leads to this machine, what a proxy may carry, and how IPv6 is written."""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from resrank.core.errors import InvalidInputError

ChannelOptions = tuple[tuple[str, int], ...]

NO_PROXY: ChannelOptions = (("grpc.enable_http_proxy", 0),)
"""gRPC's word for: whatever ``http_proxy``, ``https_proxy`` and ``grpc_proxy`` say."""

_RESOLVERS = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "google-c2p")
"""gRPC's own name resolvers (https://github.com/grpc/grpc/blob/master/doc/naming.md)."""


_V4, _V6, _PORT = r"\d+(?:\.\d+){3}", r"\[[0-9a-fA-F:.%\w]+\]", r":\d{1,5}"
_READABLE = {
    "dns": r"(?://[^/]*/)?[^/:\[\]]+(?::\d+)?|(?://[^/]*/)?\[[^\]]+\](?::\d+)?",
    "ipv4": rf"(?:///)?{_V4}{_PORT}(?:,{_V4}{_PORT})*",
    "ipv6": rf"(?:///)?{_V6}{_PORT}(?:,{_V6}{_PORT})*",
}


def is_local(target: str) -> bool:
    """Whether a gRPC target leads to this machine: loopback, a Unix socket, or the address of no host.

    Nothing is resolved: a name that a hosts file points at loopback counts as elsewhere.

    Args:
        target: ``host:port``, or with one of gRPC's schemes before it.
    """
    scheme, colon, rest = target.partition(":")
    match scheme + colon:
        case "unix:" | "unix-abstract:":
            return True
        case "dns:":
            rest = rest.removeprefix("///")  # what names a server to ask stays, and is no host of this machine
        case "ipv4:" | "ipv6:":
            rest = rest.removeprefix("///")
        case _:
            rest = target
    return all(map(_is_local_host, map(_host, rest.split(","))))


def channel_options(target: str) -> ChannelOptions:
    """What a channel needs beside its own options: without it gRPC asks a proxy for this machine, too.

    Args:
        target: As the channel is given it.
    """
    return NO_PROXY if is_local(target) else ()


def is_local_url(url: str) -> bool:
    """Whether an HTTP address leads to this machine, see :func:`is_local`."""
    return _is_local_host(urlsplit(url).hostname or "")


def join_address(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in the brackets that keep it apart from the port.

    Args:
        host: Name or address, bracketed or not.
        port: The port.
    """
    bare = bare_host(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def bare_host(host: str) -> str:
    """A host without the brackets that IPv6 addresses have beside a port."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def check_target(field: str, target: object) -> str:
    """Returns a gRPC target when it can be one.

    Args:
        field: What errors call it.
        target: ``host:port``, or with one of gRPC's schemes before it.

    Raises:
        InvalidInputError: It is empty or no text, has white space, a scheme that is not gRPC's, or an IPv6 address
            without brackets; or its port is none.
    """
    if not isinstance(target, str):
        raise InvalidInputError(field, f"must be an address, host:port, not {type(target).__name__}")
    if not target:
        raise InvalidInputError(field, "no address: give host:port")
    if re.search(r"\s|[^\x21-\x7e]", target):
        raise InvalidInputError(field, f"{target!r} is no address: white space or a character that is not ASCII")
    scheme, found, _ = target.partition("://")
    if found and scheme not in _RESOLVERS:
        raise InvalidInputError(field, f"{target!r} is no address: give host:port, without {scheme}://")
    resolver, colon, rest = target.partition(":")
    if colon and resolver in _RESOLVERS and not re.fullmatch(r"\w+:\d+", target):
        # gRPC's own resolver reads it; what it cannot read at all fails at the first call, without a word on why.
        if not re.fullmatch(_READABLE.get(resolver, r".+"), rest):
            raise InvalidInputError(field, f"{target!r} is no address as {resolver} has them")
        return target
    if target.count(":") > 1 and not target.startswith("["):
        raise InvalidInputError(field, f"{target!r}: an IPv6 address wants brackets before its port, [::1]:8001")
    match = re.fullmatch(r"(?:\[[^\]]+\]|[^:\[\]]+)(?::(\d+))?", target)
    if match is None:
        raise InvalidInputError(field, f"{target!r} is no address: give host:port")
    if match[1] is not None and not 1 <= int(match[1]) <= 65535:
        raise InvalidInputError(field, f"the port of {target!r} is none: 1 to 65535")
    return target


def _host(address: str) -> str:
    """The host of ``host``, ``host:port`` or ``[host]:port``."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    # More than one colon without brackets: gRPC takes all of it for an IPv6 address.
    return address if address.count(":") > 1 else address.partition(":")[0]


def _is_local_host(host: str) -> bool:
    name = host.rstrip(".").casefold()
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, section 6.3
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(name))  # 127.1, as resolvers read it
        except (OSError, UnicodeError, ValueError):
            return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified
