"""Mutual TLS, bearer token, restricted protocols and trace context, as the real server sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resrank.client import TlsConfig
from resrank.core.errors import InvalidInputError, ResRankError, ServerUnavailableError
from resrank.stack.triton_process import TritonProcess
from support.certificates import Certificates, make_certificates

CANDIDATES = np.eye(4, dtype=np.float16)
TELL = json.dumps({"tell": True})
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ACCESS = {"triton-grpc-protocol-x-api-key": "s3cret"}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


class SecureTriton(TritonProcess):
    """Demands a client certificate, and a header for inference."""

    def __init__(self, repository: Path, certificates: Certificates) -> None:
        super().__init__(repository, tls=certificates.served)
        self.command += [
            "--grpc-restricted-protocol=inference:x-api-key=s3cret",
            "--grpc-header-forward-pattern=.*",
        ]


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
    for tls in (
        None,
        TlsConfig(root_certificates=certificates.authority),
        TlsConfig(),
        certificates.of("stranger"),
        certificates.of("expired"),
    ):
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
