"""A Milvus server for tests: the gRPC server of the package ``milvus-lite``, in a process and a folder of its own."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from pymilvus import MilvusClient

_START_S = 30.0


class NoMilvus(Exception):
    """Milvus cannot run here; the message says why."""


class MilvusServer:
    """A server on a free port, which goes with its folder.

    Raises:
        NoMilvus: The package is not installed, or its server does not start.
    """

    def __init__(self) -> None:
        if find_spec("milvus_lite") is None:
            raise NoMilvus("milvus-lite is not installed")
        self._folder = Path(tempfile.mkdtemp(prefix="resrank-milvus-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._databases = 0
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Starts it, and waits until it listens."""
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(self._folder / "data")]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)], stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        self.kill()
        raise NoMilvus(f"its server does not start: {(self._folder / 'log').read_text()[-500:]}")

    def kill(self) -> None:
        """Ends it without warning."""
        self._process.kill()
        self._process.wait()

    def emptied(self) -> str:
        """Makes an empty database; returns its URL."""
        self._databases += 1
        return new_database(f"127.0.0.1:{self.port}", f"test{self._databases}")


class RunningMilvus:
    """A server that somebody runs, where it is not these tests' to stop.

    Args:
        address: ``host:port``.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def emptied(self) -> str:
        """Makes an empty database, which stays; returns its URL."""
        return new_database(self._address, f"test_{secrets.token_hex(8)}")


def new_database(address: str, name: str) -> str:
    """Makes an empty database; returns its URL."""
    client = MilvusClient(f"http://{address}", dedicated=True)
    client.create_database(name)
    client.close()
    return f"milvus://{address}/{name}"
