"""A stack beside a sidecar that others started: by every route, and when that one goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest

from resrank.client import ResRankClient, ServerUnavailableError
from resrank.stack.local_stack import LocalStack
from resrank.stack.sidecar_process import SidecarProcess

from .conftest import Exported
from .test_search import PASSAGES, QUERY, fill


def _over_http(stack: LocalStack, path: str, body: Any = None) -> Any:
    assert stack.gateway is not None
    data = None if body is None else json.dumps(body).encode()
    with urlopen(
        Request(f"{stack.gateway.url}{path}", data, {"Content-Type": "application/json"}), timeout=30
    ) as answer:
        return json.load(answer)


def test_search_health_and_gateway_ask_the_sidecar_that_was_joined(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    made = exported("query_residual-linear-openvino")
    with (
        SidecarProcess(tmp_path / "index") as sidecar,
        LocalStack(made.repository, tmp_path / "unused", joined=sidecar.address, http=True) as stack,
        ResRankClient(stack.triton.grpc_address, retrieval=sidecar.address, max_attempts=1) as client,
    ):
        fill(sidecar.address, client.encoder_sha256(), np.stack([made.reference.encode(text) for text in PASSAGES]))
        assert client.health().ok
        found = [
            [passage.id for passage in client.search(QUERY, 5, route=route).passages] for route in ("client", "server")
        ]
        assert len(found[0]) == 5
        assert found[1] == found[0]
        assert [one["id"] for one in _over_http(stack, "v1/search", {"query": QUERY, "k": 5})["passages"]] == found[0]
        assert _over_http(stack, "v1/health/ready")
        stack.stop()
        assert sidecar.is_ready()
        assert not (tmp_path / "unused").exists()


def test_a_joined_sidecar_may_go_and_come_back(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    made = exported("query_residual-linear-openvino")
    with SidecarProcess(tmp_path / "index") as sidecar:
        port = sidecar.port
        with (
            LocalStack(made.repository, tmp_path / "unused", joined=sidecar.address) as stack,
            ResRankClient(stack.triton.grpc_address, max_attempts=1) as client,
        ):
            fill(sidecar.address, client.encoder_sha256(), np.stack([made.reference.encode(text) for text in PASSAGES]))
            sidecar.stop(30)
            with pytest.raises(ServerUnavailableError):
                client.search(QUERY, 5, route="server")
            for process in stack.processes:
                process.check_alive()
            with (
                SidecarProcess(tmp_path / "index", port=port),
                ResRankClient(stack.triton.grpc_address, max_attempts=8) as patient,
            ):
                assert len(patient.search(QUERY, 5, route="server").passages) == 5
