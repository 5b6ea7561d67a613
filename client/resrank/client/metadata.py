"""gRPC metadata of a call: the configured headers and the bearer token."""

from __future__ import annotations

import re

from resrank.client.settings import ClientSettings
from resrank.core.errors import InvalidInputError

Metadata = tuple[tuple[str, str], ...]

# gRPC over HTTP/2, "ASCII-Value". gRPC's own refusal of others is neither typed nor does it say which value it was.
_METADATA_VALUE = re.compile(r"[\x20-\x7e]*")


def call_metadata(settings: ClientSettings) -> Metadata:
    """Metadata for every request of one call, but for the trace context, which each request has of its own.

    Args:
        settings: Headers and token.

    Raises:
        InvalidInputError: A value is no text or not printable ASCII.
    """
    pairs = dict(settings.headers)
    token = settings.bearer_token() if callable(settings.bearer_token) else settings.bearer_token
    if token is not None:
        if not isinstance(token, str):
            raise InvalidInputError("bearer_token", f"must be a string, not {type(token).__name__}")
        pairs["authorization"] = f"Bearer {token}"
    for key, value in pairs.items():
        if not isinstance(value, str) or not _METADATA_VALUE.fullmatch(value):  # not told: it may be a secret
            raise InvalidInputError(
                "bearer_token" if key == "authorization" and token is not None else f"headers[{key!r}]",
                "must be printable ASCII; a token read from a file may still have the file's newline",
            )
    return tuple(pairs.items())
