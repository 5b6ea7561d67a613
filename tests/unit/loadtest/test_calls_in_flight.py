"""A call's answer is seen when it comes, however many calls are still waiting for theirs."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from .conftest import ROOT

WAITING = 30

LOADS = {
    "open": "{kind: open, max_in_flight: 40, phases: [{name: all, rate: 10, duration_s: 10}]}",
    "closed": "{kind: closed, phases: [{name: few, users: 1, duration_s: 10}, {name: all, users: 40, duration_s: 10}]}",
}


class Methods(grpc.GenericRpcHandler):
    """``wait`` returns when ``release`` was called, ``answer`` at once."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = handler_call_details.method.rpartition("/")[2]

        def handle(_: bytes, context: grpc.ServicerContext) -> bytes:
            if method == "wait":
                self.released.wait(60)
            elif method == "release":
                self.released.set()
            return b""

        return grpc.unary_unary_rpc_method_handler(handle)


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadPoolExecutor(WAITING + 5) as threads:
        server = grpc.server(threads)
        methods = Methods()
        server.add_generic_rpc_handlers((methods,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        methods.released.set()
        server.stop(None).wait()


@pytest.mark.parametrize("kind", LOADS)
def test_an_answer_is_seen_while_others_wait(address: str, tmp_path: Path, kind: str) -> None:
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(f"name: many\nmix: {{embed: 1}}\nload: {LOADS[kind]}\ndeadline_s: 5\n")
    command = [sys.executable, "-m", "support.patient_client", address, str(scenario), str(WAITING)]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
