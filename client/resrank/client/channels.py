"""Channels to Triton and to the sidecar, for threads and for asyncio, with the same limits and security."""

from __future__ import annotations

from pathlib import Path

import grpc
from grpc import aio

from resrank.client.settings import TlsConfig
from resrank.core.addresses import channel_options
from resrank.core.errors import InvalidInputError
from resrank.core.limits import MAX_GRPC_MESSAGE_BYTES

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES),
    # gRPC waits 1 s before it dials a server again that refused, and 120 s at most: while it waits every request fails
    # at once, so the client's own retries (0.1 to 2 s apart) would never meet a server that has just come back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Else a call without a deadline waits for ever for a machine that lost its power. Servers take a ping every
    # 5 minutes where nothing else is sent, and hang up on more.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


def open_channel(address: str, tls: TlsConfig | None) -> grpc.Channel:
    """A channel for use from any number of threads; it connects at the first request.

    Raises:
        InvalidInputError: A certificate or key cannot be read.
    """
    if tls is None:
        return grpc.insecure_channel(address, options=_options(address))
    return grpc.secure_channel(address, _credentials(tls), options=_options(address))


def open_aio_channel(address: str, tls: TlsConfig | None) -> aio.Channel:
    """A channel of the running event loop; it connects at the first request.

    Raises:
        InvalidInputError: A certificate or key cannot be read.
    """
    if tls is None:
        return aio.insecure_channel(address, options=_options(address))
    return aio.secure_channel(address, _credentials(tls), options=_options(address))


def _options(address: str) -> tuple[tuple[str, int], ...]:
    return _OPTIONS + channel_options(address)


def _credentials(tls: TlsConfig) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=_pem("tls.root_certificates", tls.root_certificates),
        private_key=_pem("tls.private_key", tls.private_key),
        certificate_chain=_pem("tls.certificate_chain", tls.certificate_chain),
    )


def _pem(name: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InvalidInputError(name, f"{path} cannot be read: {error.strerror}") from error
    if b"-----BEGIN " not in content:
        raise InvalidInputError(name, f"{path} is not a PEM file")
    return content
