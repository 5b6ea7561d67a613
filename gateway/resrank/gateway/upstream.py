"""The client of the servers behind a gateway."""

from __future__ import annotations

from pathlib import Path

from resrank.client import AsyncResRankClient
from resrank.core.errors import InvalidInputError
from resrank.gateway.settings import GatewaySettings


def open_client(settings: GatewaySettings) -> AsyncResRankClient:
    """Makes the client; it connects at its first request.

    Args:
        settings: Where the servers are, and how they are spoken to.

    Raises:
        InvalidInputError: An address or a file is wrong.
    """
    tls, key_file = settings.upstream_tls, settings.upstream_bearer_key_file
    # Its socket, which only its owner can open, is in the clear whatever its port wants.
    by_socket = settings.retrieval is not None and settings.retrieval.startswith(("unix:", "unix-abstract:"))
    return AsyncResRankClient(
        settings.triton,
        retrieval=settings.retrieval,
        timeout_s=settings.timeout_s,
        on_failure=settings.on_failure,
        tls=tls,
        retrieval_tls=None if by_socket else tls,
        bearer_token=None if key_file is None else _read_key(key_file),
    )


def _read_key(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError("upstream_bearer_key_file", f"{path} cannot be read") from error
