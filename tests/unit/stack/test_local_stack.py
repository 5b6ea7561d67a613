"""How the processes of a stack are told of each other; none is started."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from resrank.stack import local_stack, triton_process
from resrank.stack.local_stack import LocalStack
from resrank.stack.triton_install import TritonInstall


@pytest.mark.parametrize(
    ("host", "name"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("0.0.0.0", "localhost"), ("::", "localhost")],
)
def test_the_gateway_asks_triton_by_a_name_that_a_certificate_can_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, name: str
) -> None:
    manifest = SimpleNamespace(checkpoint=SimpleNamespace(encoder_sha256="a" * 64))
    monkeypatch.setattr(local_stack, "read_manifest", lambda _: manifest)
    monkeypatch.setattr(local_stack, "require_servable", lambda *_: None)
    monkeypatch.setattr(triton_process, "find_triton", lambda: TritonInstall(tmp_path / "tritonserver", embedded=False))
    stack = LocalStack(tmp_path, tmp_path / "index", host=host, insecure=True, http=True)
    assert stack.gateway is not None
    environment = stack.gateway.environment
    assert environment is not None
    assert environment["RESRANK_GATEWAY_TRITON"] == f"{name}:{stack.triton.grpc_port}"
    assert environment["RESRANK_GATEWAY_RETRIEVAL"].startswith("unix:/")
