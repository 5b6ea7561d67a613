"""How a client reaches its servers: addresses, deadlines, retries, transport security and credentials."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import MappingProxyType

from resrank.client.inputs import whole_number
from resrank.core.addresses import check_target, is_local
from resrank.core.errors import InvalidInputError
from resrank.core.fail_open import OnFailure
from resrank.core.search import choice

DEFAULT_TRITON_ADDRESS = "localhost:8001"
"""Triton's own default gRPC port."""

DEFAULT_TIMEOUT_S = 10.0
"""An online request that takes longer has lost its user; offline jobs set their own."""

# gRPC's rule for metadata keys (gRPC over HTTP/2, "Custom-Metadata"), lower case as HTTP/2 wants it.
_METADATA_KEY = re.compile(r"[0-9a-z_.-]+")


@dataclass(frozen=True)
class TlsConfig:
    """Transport security of one channel, as PEM files.

    Attributes:
        root_certificates: Authorities that the server's certificate is checked against; None for the system's own.
        certificate_chain: The client's certificate, for mutual TLS; needs ``private_key``.
        private_key: The client's key, for mutual TLS; needs ``certificate_chain``.

    Raises:
        InvalidInputError: Only one of certificate and key is given, or what is given is no path.
    """

    root_certificates: Path | None = None
    certificate_chain: Path | None = None
    private_key: Path | None = None

    def __post_init__(self) -> None:
        for name in ("root_certificates", "certificate_chain", "private_key"):
            path = getattr(self, name)
            if path is not None and not isinstance(path, str | os.PathLike):
                raise InvalidInputError(f"tls.{name}", f"must be a path, not {type(path).__name__}")
        if (self.certificate_chain is None) != (self.private_key is None):
            raise InvalidInputError(
                "tls", "mutual TLS needs both certificate_chain and private_key: give both or neither"
            )


@dataclass(frozen=True)
class ClientSettings:
    """Everything a client is constructed with, checked once.

    Attributes:
        triton: ``host:port`` (or any gRPC target) of Triton's gRPC endpoint.
        retrieval: The same for the retrieval sidecar; None when ``search`` is not used.
        timeout_s: Budget of a whole call in seconds, retries and all steps included, unless the call gives its own.
        max_attempts: How often a request is sent while no server answers (1: no retries).
        max_in_flight: Requests of one call that are under way at the same time: blocks of candidates, batches of texts.
        tls: Transport security of the channel to Triton; None for plaintext.
        retrieval_tls: The same for the sidecar.
        bearer_token: Sent as ``authorization: Bearer …`` to both servers; a callable is asked once a call, for
            tokens that expire.
        headers: Sent as metadata with every request to both servers. Triton's restricted protocols
            (``--grpc-restricted-protocol=inference:KEY=VALUE``) want ``{"triton-grpc-protocol-KEY": "VALUE"}``.
        traceparent: Asked once a call for the W3C trace context to send along.
        on_failure: What ``search`` and ``rerank`` do where the models fail, unless the call says otherwise.

    Raises:
        InvalidInputError: A setting is out of its range, or a bearer token would leave this machine in plaintext.
    """

    triton: str = DEFAULT_TRITON_ADDRESS
    retrieval: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    max_attempts: int = 4
    max_in_flight: int = 4
    tls: TlsConfig | None = None
    retrieval_tls: TlsConfig | None = None
    bearer_token: str | Callable[[], str] | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    traceparent: Callable[[], str | None] | None = None
    on_failure: OnFailure = OnFailure.ERROR

    def __post_init__(self) -> None:
        check_target("triton", self.triton)
        if self.retrieval is not None:
            check_target("retrieval", self.retrieval)
        object.__setattr__(self, "timeout_s", check_timeout(self.timeout_s))
        for name in ("max_attempts", "max_in_flight"):
            if (value := whole_number(name, getattr(self, name))) < 1:
                raise InvalidInputError(name, "too small", limit=1, value=value)
        for name, tls in (("tls", self.tls), ("retrieval_tls", self.retrieval_tls)):
            if tls is not None and not isinstance(tls, TlsConfig):
                raise InvalidInputError(name, f"must be a TlsConfig, not {type(tls).__name__}")
        object.__setattr__(self, "on_failure", choice("on_failure", OnFailure, self.on_failure))
        if not isinstance(self.headers, Mapping):
            raise InvalidInputError(
                "headers", f"must be a mapping of names to values, not {type(self.headers).__name__}"
            )
        headers = {_metadata_key(key): value for key, value in self.headers.items()}
        object.__setattr__(self, "headers", MappingProxyType(headers))
        self.require_encryption(self.triton, self.tls)
        if self.retrieval is not None:
            self.require_encryption(self.retrieval, self.retrieval_tls)

    def require_encryption(self, address: str, tls: TlsConfig | None) -> None:
        """Refuses to send the bearer token, where there is one, to another machine in plaintext.

        Raises:
            InvalidInputError: It would be.
        """
        if self.bearer_token is not None and tls is None and not is_local(address):
            raise InvalidInputError(
                "bearer_token",
                f"would travel unencrypted to {address}: configure TLS for it, or, where a proxy on this machine "
                "encrypts, pass the token in headers",
            )


def check_timeout(timeout_s: float) -> float:
    """Returns a deadline's length in seconds when it is one.

    Raises:
        InvalidInputError: Not a finite number above 0.
    """
    if not isinstance(timeout_s, Real):
        raise InvalidInputError("timeout_s", f"must be a number of seconds, not {type(timeout_s).__name__}")
    try:
        seconds = float(timeout_s)
    except OverflowError:
        seconds = math.inf
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidInputError("timeout_s", "must be a finite number of seconds above 0", limit=0, value=seconds)
    return seconds


def _metadata_key(key: object) -> str:
    name = key.lower() if isinstance(key, str) else ""
    if not _METADATA_KEY.fullmatch(name):
        raise InvalidInputError("headers", f"{key!r} is no metadata key: use letters, digits, '-', '_' and '.'")
    if name.endswith("-bin"):
        raise InvalidInputError("headers", f"{key!r} is a key for binary values, which headers are not")
    return name
