"""Transport security of a server, and where one may listen without it."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from resrank.core.errors import InvalidInputError


@dataclass(frozen=True)
class ServerTls:
    """Certificates of a server, as PEM files, read and checked once.

    Attributes:
        certificate: The server's certificate, with those between it and its authority.
        key: Its private key, without a passphrase.
        client_ca: Authorities of callers' certificates; callers then need one (mutual TLS). None lets everybody in.

    Raises:
        InvalidInputError: A file cannot be read or is no PEM file, or the key is not the certificate's.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        for name, path in (("certificate", self.certificate), ("key", self.key), ("client_ca", self.client_ca)):
            if path is not None:
                _require_pem(f"tls_{name}", path)
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise InvalidInputError(
                "tls_key", f"{self.key} is not the unencrypted key of {self.certificate} ({error})"
            ) from error


def server_tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    """Reads the three settings of a command.

    Returns:
        None when none is given.

    Raises:
        InvalidInputError: One is missing, or a file is not what it should be.
    """
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise InvalidInputError("tls_certificate", "a certificate and its key are needed, both or neither")
    return ServerTls(certificate, key, client_ca)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_protection(
    host: str, *, encrypted: bool, authenticated: bool, remedy: str, insecure: bool, field: str = "host"
) -> None:
    """Refuses to open a server to other machines that anybody could read or use.

    Args:
        host: Address to listen on.
        encrypted: Whether it has a certificate.
        authenticated: Whether callers must prove who they are.
        remedy: Which settings would do it.
        insecure: Whether the caller insists.
        field: What errors call the address.

    Raises:
        InvalidInputError: It lacks one of the two.
    """
    if insecure or is_loopback(host) or (encrypted and authenticated):
        return
    raise InvalidInputError(
        field,
        f"{host} is beyond loopback, where anybody could call: {remedy}, or say --insecure where the network or a "
        "proxy protects it",
    )


def _require_pem(name: str, path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(name, f"{path} cannot be read: {error.strerror}") from error
    if b"-----BEGIN " not in content:
        raise InvalidInputError(name, f"{path} is not a PEM file")
