"""The retrieval sidecar as a child process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from resrank.core.addresses import join_address
from resrank.core.errors import StackError
from resrank.core.extras import install_command
from resrank.core.server_tls import ServerTls
from resrank.retrieval.store_url import LOCAL, STORE_VARIABLE, StoreUrl
from resrank.stack.ports import choose_ports
from resrank.stack.process import ManagedProcess
from resrank.stack.running_sidecar import RunningSidecar

_HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Has malloc ask for huge pages. FAISS does not, and a flat search reads all vectors: over 100,000 x 384 measured at
5.4 ms with them and 10.2 without, on a machine whose transparent huge pages are set to `madvise`, a usual default."""


class SidecarProcess(ManagedProcess):
    """Runs ``python -m resrank.retrieval`` on one store.

    Args:
        index: Index folder, an empty or missing one is made, or a store's URL.
        host: Address to listen on.
        port: gRPC port; a free one when None.
        socket: Unix domain socket to listen on beside the port; None for the port alone.
        tls: Certificates for the port, which takes a ``socket`` to ask it through; None for plain text.
        bearer_key_file: File with the key that callers of the port must send, which takes a ``socket``, too.
        insecure: Whether it may listen beyond loopback without TLS or without a way to tell callers apart.
        metrics_host: Address for its metrics.
        metrics_port: Port for its Prometheus metrics; None for none.
        environment: What it is told beside this process's own environment.
        log_path: File for its log; an unnamed temporary file when None.
        on_line: Called with each line of its log, in a thread of its own.
        ready_timeout_s: How long :meth:`wait_ready` waits. Opening a large index reads it.

    Raises:
        StackError: The port is taken, or ``resrank[retrieval]`` is not installed.
    """

    def __init__(
        self,
        index: Path | StoreUrl,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        socket: Path | None = None,
        tls: ServerTls | None = None,
        bearer_key_file: Path | None = None,
        insecure: bool = False,
        metrics_host: str = "127.0.0.1",
        metrics_port: int | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
        log_path: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        ready_timeout_s: float = 300.0,
    ) -> None:
        if find_spec("faiss") is None or find_spec("grpc_health") is None:
            raise StackError(f"the retrieval sidecar is not installed here: {install_command('retrieval')}")
        self.index = StoreUrl.local(index) if isinstance(index, Path) else index
        self.host = host
        self.socket = socket
        self.metrics_address = None if metrics_port is None else join_address(metrics_host, metrics_port)
        (self.port,) = choose_ports(host, port)
        super().__init__(
            "retrieval sidecar",
            [
                *(sys.executable, "-m", "resrank.retrieval"),
                *(("--index", self.index.folder) if self.index.scheme == LOCAL else ()),
                *("--host", host, "--port", str(self.port)),
                *(() if socket is None else ("--socket", socket.absolute())),
                *_tls_options(tls),
                *(() if bearer_key_file is None else ("--bearer-key-file", bearer_key_file.absolute())),
                *(("--insecure",) if insecure else ()),
                *_metrics_options(metrics_host, metrics_port),
            ],
            # A user's own tunables are left alone.
            environment={
                "GLIBC_TUNABLES": _HUGE_PAGES,
                **os.environ,
                # No option: those are shown to everybody on this machine.
                **({} if self.index.scheme == LOCAL else {STORE_VARIABLE: self.index.secret}),
                **environment,
            },
            log_path=log_path,
            on_line=on_line,
            ready_timeout_s=ready_timeout_s,
        )

    @property
    def address(self) -> str:
        """``host:port`` of the gRPC endpoint."""
        return join_address(self.host, self.port)

    @property
    def local_target(self) -> str:
        """How processes here reach it: the socket, which wants neither certificate nor key, where there is one."""
        return self.address if self.socket is None else f"unix:{self.socket.absolute()}"

    def is_ready(self) -> bool:
        """Whether its health service says ``SERVING``."""
        return RunningSidecar(self.local_target).is_ready()

    def encoders(self) -> dict[str, str]:
        """See :meth:`RunningSidecar.encoders`."""
        return RunningSidecar(self.local_target).encoders()


def _tls_options(tls: ServerTls | None) -> list[str | Path]:
    if tls is None:
        return []
    client_ca: list[str | Path] = [] if tls.client_ca is None else ["--tls-client-ca", tls.client_ca.absolute()]
    return ["--tls-certificate", tls.certificate.absolute(), "--tls-key", tls.key.absolute(), *client_ca]


def _metrics_options(host: str, port: int | None) -> list[str]:
    return [] if port is None else ["--metrics-host", host, "--metrics-port", str(port)]
