"""A proxy in the environment carries nothing that stays on this machine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resrank.client import AsyncResRankClient, ResRankClient
from resrank.client.sidecar import AsyncSidecar
from resrank.stack.sidecar_process import SidecarProcess

PROXY_VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy")


@pytest.fixture(autouse=True)
def proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that refuses every connection, for every address."""
    for variable in PROXY_VARIABLES:
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")


def test_the_clients_the_index_commands_and_the_health_check_reach_the_sidecar(index: Path, tmp_path: Path) -> None:
    socket = tmp_path / "retrieval.sock"

    async def ask(address: str) -> list[Any]:
        async with (
            AsyncResRankClient(address, retrieval=address, timeout_s=20) as client,
            AsyncSidecar(address) as other,
        ):
            return [(await client.health()).retrieval, await other.describe()]

    with SidecarProcess(index, socket=socket, ready_timeout_s=60) as sidecar:
        for address in (sidecar.address, f"unix:{socket}"):
            with ResRankClient(address, retrieval=address, timeout_s=20) as client:
                assert client.health().retrieval is not None
            assert all(asyncio.run(ask(address)))
        assert sidecar.encoders() == {"default": ""}


def test_a_command_reaches_the_sidecar_that_it_starts_itself(index: Path) -> None:
    index.mkdir()
    command = [sys.executable, "-m", "resrank.stack", "index", "describe", "--index", str(index), "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["record_count"] == 0
