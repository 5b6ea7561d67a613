"""How a gateway speaks to the servers behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resrank.client import TlsConfig
from resrank.gateway import upstream
from resrank.gateway.settings import read_settings

TLS = TlsConfig(Path("/tls/ca.crt"))


@pytest.mark.parametrize(
    ("retrieval", "tls"),
    [
        (None, TLS),
        ("localhost:8003", TLS),
        ("unix.example:8003", TLS),
        ("unix:/run/resrank/retrieval.sock", None),
        ("unix:///run/resrank/retrieval.sock", None),
        ("unix-abstract:resrank", None),
    ],
)
def test_a_socket_is_spoken_to_in_plain_text(
    monkeypatch: pytest.MonkeyPatch, retrieval: str | None, tls: TlsConfig | None
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(upstream, "AsyncResRankClient", lambda triton, **fields: given.update(fields, triton=triton))
    upstream.open_client(read_settings(upstream_tls_ca=TLS.root_certificates, retrieval=retrieval))
    assert (given["triton"], given["tls"]) == ("localhost:8001", TLS)
    assert (given["retrieval"], given["retrieval_tls"]) == (retrieval, tls)
