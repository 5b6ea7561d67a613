"""The gateway's socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from resrank.gateway.server import listen
from resrank.gateway.settings import GatewaySettings


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_head() -> None:
    """Head and body are two writes, and the second would wait for a caller who acknowledges after 40 ms."""
    with closing(listen(GatewaySettings(port=0))) as listener:
        with socket.create_connection(listener.getsockname()[:2]):
            accepted, _ = listener.accept()
        with closing(accepted):
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_output_onto_a_full_device_is_told(tmp_path: Path) -> None:
    environment = {**os.environ, "RESRANK_GATEWAY_PORT": "0", "HOME": str(tmp_path)}
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "resrank.gateway"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr.endswith("resrank.gateway: [Errno 28] No space left on device\n")
