"""Certificates made on the spot: an authority, a server's, and good, expired and foreign ones of callers."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from resrank.client import TlsConfig
from resrank.core.server_tls import ServerTls

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Certificates:
    """A folder with ``NAME.pem`` and ``NAME.key`` of ``ca``, ``server``, ``late`` (a server's, expired), ``client``,
    ``expired`` and ``stranger`` (a caller's, of another authority)."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def mutual(self) -> TlsConfig:
        return self.of("client")

    @property
    def served(self) -> ServerTls:
        return self.served_as("server")

    def served_as(self, name: str) -> ServerTls:
        return ServerTls(self.folder / f"{name}.pem", self.folder / f"{name}.key", self.authority)

    def of(self, name: str) -> TlsConfig:
        return TlsConfig(self.authority, self.folder / f"{name}.pem", self.folder / f"{name}.key")


def make_certificates(folder: Path) -> Certificates:
    """Makes them with openssl, or skips the test where there is none."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates of this test and is not installed")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for authority in ("ca", "other"):
        subject = ("-subj", f"/CN={authority} authority")
        openssl(
            "req", "-x509", *_KEY, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", *subject, "-days", "2"
        )
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name, authority, days in (
        ("server", "ca", "2"),
        ("late", "ca", "-1"),
        ("client", "ca", "2"),
        ("expired", "ca", "-1"),
        ("stranger", "other", "2"),
    ):
        openssl("req", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"),
            *("-CAcreateserial", "-out", f"{name}.pem", "-days", days, "-extfile", "san"),
        )
    return Certificates(folder)
