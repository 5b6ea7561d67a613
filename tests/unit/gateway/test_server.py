"""The gateway's socket."""

from __future__ import annotations

import socket
from contextlib import closing

from resrank.gateway.server import listen
from resrank.gateway.settings import GatewaySettings


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_head() -> None:
    """Head and body are two writes, and the second would wait for a caller who acknowledges after 40 ms."""
    with closing(listen(GatewaySettings(port=0))) as listener:
        with socket.create_connection(listener.getsockname()[:2]):
            accepted, _ = listener.accept()
        with closing(accepted):
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
