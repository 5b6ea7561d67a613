"""Mutual TLS, bearer token, restricted protocols and trace context, as the real server sees them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resrank.client import ResRankClient, TlsConfig
from resrank.core.errors import InvalidInputError, ResRankError, ServerUnavailableError
from resrank.stack.triton_process import TritonProcess

CANDIDATES = np.eye(4, dtype=np.float16)
TELL = json.dumps({"tell": True})
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ACCESS = {"triton-grpc-protocol-x-api-key": "s3cret"}


@dataclass(frozen=True)
class Certificates:
    authority: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path

    @property
    def mutual(self) -> TlsConfig:
        return TlsConfig(self.authority, self.client, self.client_key)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates of this test and is not installed")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority", "-days", "2")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-out", f"{name}.pem", "-days", "2", "-extfile", "san"),
        )
    return Certificates(*(folder / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")))


class SecureTriton(TritonProcess):
    """Demands a client certificate, and a header for inference."""

    def __init__(self, repository: Path, certificates: Certificates) -> None:
        super().__init__(repository)
        self._tls = certificates.mutual
        self.command += [
            *("--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true"),
            f"--grpc-server-cert={certificates.server}",
            f"--grpc-server-key={certificates.server_key}",
            f"--grpc-root-cert={certificates.authority}",
            "--grpc-restricted-protocol=inference:x-api-key=s3cret",
            "--grpc-header-forward-pattern=.*",
        ]

    def is_ready(self) -> bool:
        with ResRankClient(self.grpc_address, tls=self._tls) as client:
            return client.health(timeout_s=1.0).ready


@pytest.fixture(scope="module")
def secure(triton_without_texts: TritonProcess, certificates: Certificates) -> Iterator[TritonProcess]:
    with SecureTriton(triton_without_texts.repository, certificates) as process:
        yield process


def told(client: Any, **options: Any) -> dict[str, Any]:
    with pytest.raises(InvalidInputError) as caught:
        client.rerank(TELL, CANDIDATES, **options)
    answer: dict[str, Any] = json.loads(caught.value.problem)
    return answer


def test_mutual_tls_with_token_and_restricted_protocol(
    make: Any, secure: TritonProcess, certificates: Certificates
) -> None:
    client = make(secure.grpc_address, tls=certificates.mutual, headers=ACCESS, bearer_token=lambda: "t0ken")
    assert len(client.rerank("query", CANDIDATES).passages) == 4
    assert told(client)["authorization"] == "Bearer t0ken"


def test_without_the_header_access_is_refused_and_not_retried(
    make: Any, secure: TritonProcess, certificates: Certificates
) -> None:
    client = make(secure.grpc_address, tls=certificates.mutual)
    with pytest.raises(ResRankError, match="access refused") as caught:
        client.rerank("query", CANDIDATES)
    assert type(caught.value) is ResRankError


def test_a_client_without_a_certificate_reaches_no_server(
    make: Any, secure: TritonProcess, certificates: Certificates
) -> None:
    for tls in (None, TlsConfig(root_certificates=certificates.authority), TlsConfig()):
        with pytest.raises(ServerUnavailableError):
            make(secure.grpc_address, tls=tls, headers=ACCESS, max_attempts=1).rerank("query", CANDIDATES)


def test_headers_and_trace_context_travel(make: Any, triton_without_texts: TritonProcess) -> None:
    address = triton_without_texts.grpc_address
    client = make(address, headers={"X-Tenant": "blue"}, traceparent=lambda: TRACEPARENT)
    assert told(client)["x-tenant"] == "blue"
    assert told(client)["traceparent"] == TRACEPARENT
    own = TRACEPARENT.replace("b7ad6b7169203331", "00f067aa0ba902b7")
    assert told(client, traceparent=own)["traceparent"] == own
    assert "traceparent" not in told(make(address))


def test_every_block_carries_the_metadata(make: Any, triton_without_texts: TritonProcess) -> None:
    client = make(triton_without_texts.grpc_address, traceparent=lambda: TRACEPARENT)
    with pytest.raises(InvalidInputError) as caught:
        client.rerank(TELL, np.tile(CANDIDATES, (4, 1)))
    assert json.loads(caught.value.problem)["traceparent"] == TRACEPARENT
