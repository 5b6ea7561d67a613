"""A running ``tritonserver`` on one model repository, bound to loopback unless told otherwise."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from resrank.core.addresses import NO_PROXY, bare_host, join_address
from resrank.core.errors import StackError
from resrank.core.names import RETRIEVAL_SOCKET_VARIABLE
from resrank.stack.plain_paths import PlainPaths
from resrank.stack.ports import choose_ports
from resrank.stack.process import ManagedProcess
from resrank.stack.triton_install import TritonInstall, find_triton

_SHARED_MEMORY = Path("/dev/shm")
_STUB_TIMEOUT_S = 300
"""How long Triton waits for a Python model to initialise. Its own 30 s are too few for compiling an engine."""

SERVING_FLAGS = (
    "--model-control-mode=none",
    "--disable-auto-complete-config",
    "--strict-readiness=true",
    "--allow-http=false",
    f"--backend-config=python,stub-timeout-seconds={_STUB_TIMEOUT_S}",
)
"""How a repository that export wrote is served anywhere: the container image in ``deploy/docker`` has them too."""


class TritonProcess(ManagedProcess):
    """Starts Triton on a model repository, waits until every model is ready, and stops it without leftovers.

    Models load once and are never polled or reloaded (``--model-control-mode=none``), configs are taken as written
    (``--disable-auto-complete-config``), and readiness means that all models are ready. HTTP is off unless a port is
    given. The Python backend's shared-memory segments get a prefix of this process's own, so that what a killed
    server leaves in ``/dev/shm`` can be told from others' and removed.

    Args:
        repository: Model repository folder.
        host: Address to listen on.
        grpc_port: Port for gRPC; a free one when None.
        metrics_port: Port for the Prometheus metrics; a free one when None.
        retrieval_socket: Unix domain socket of the retrieval sidecar, for the ``search`` model; None for what the
            environment says.
        log_path: File for the server's log; an unnamed temporary file when None.
        on_line: Called with each line of the server's log, in a thread of its own.
        ready_timeout_s: How long :meth:`wait_ready` waits.
        exit_timeout_s: How long Triton lets requests in flight finish when it is told to end.
        install: Which server to run; :func:`~resrank.stack.triton_install.find_triton` decides when None.

    Raises:
        StackError: No server can be found or prepared, or the repository is not a folder.

    Example:
        >>> with TritonProcess(Path("var/repository")) as triton:
        ...     client = tritonclient.grpc.InferenceServerClient(triton.grpc_address)
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        retrieval_socket: Path | None = None,
        log_path: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        ready_timeout_s: float = 300.0,
        exit_timeout_s: int = 20,
        install: TritonInstall | None = None,
    ) -> None:
        if not repository.is_dir():
            raise StackError(f"{repository} is not a folder: give a model repository, as resrank export writes it")
        self.install = find_triton() if install is None else install
        self.repository = repository
        self._paths = PlainPaths()
        self.host = host
        self.grpc_port, self.metrics_port = choose_ports(host, grpc_port, metrics_port)
        self.shared_memory_prefix = f"resrank_{os.getpid()}_{secrets.token_hex(4)}_"
        told = {} if retrieval_socket is None else {RETRIEVAL_SOCKET_VARIABLE: str(retrieval_socket.absolute())}
        super().__init__(
            "tritonserver",
            [self.install.executable, *self._flags(exit_timeout_s)],
            # CUDA's own order puts the fastest GPU first; the numbers in a repository are nvidia-smi's.
            environment={"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **os.environ, **told, **self.install.environment},
            log_path=log_path,
            on_line=on_line,
            ready_timeout_s=ready_timeout_s,
        )

    @property
    def grpc_address(self) -> str:
        """``host:port`` of the gRPC endpoint."""
        return join_address(self.host, self.grpc_port)

    @property
    def metrics_address(self) -> str:
        """``host:port`` of the Prometheus endpoint (``http://…/metrics``)."""
        return join_address(self.host, self.metrics_port)

    def is_ready(self) -> bool:
        """Whether the server and all its models are ready."""
        import tritonclient.grpc as triton_grpc

        with triton_grpc.InferenceServerClient(self.grpc_address, channel_args=NO_PROXY) as client:
            try:
                return bool(client.is_server_ready(client_timeout=1.0))
            except triton_grpc.InferenceServerException:  # not listening yet
                return False

    def _flags(self, exit_timeout_s: int) -> list[str]:
        flags = [
            f"--model-repository={self._paths.plain(self.repository)}",
            *SERVING_FLAGS,
            f"--exit-timeout-secs={exit_timeout_s}",
            f"--grpc-address={join_address(self.host, self.grpc_port).rpartition(':')[0]}",
            f"--grpc-port={self.grpc_port}",
            # Its HTTP library tells an IPv6 address by this word before it (libevhtp, evhtp_bind_socket).
            f"--metrics-address={'ipv6:' * (':' in self.host)}{bare_host(self.host)}",
            f"--metrics-port={self.metrics_port}",
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory_prefix}",
        ]
        if self.install.backend_directory is not None:
            flags.append(f"--backend-directory={self._paths.plain(self.install.backend_directory)}")
        return flags

    def _tells(self, line: str) -> bool:
        # Below the errors that explain a failed start, Triton prints wide tables of its options and much information.
        return line.strip() != "" and not re.match(r"\+-|\| |I\d{4} ", line)

    def _ended(self) -> None:
        # A server that ended well has removed its segments; one that was killed cannot.
        for segment in _SHARED_MEMORY.glob(f"{self.shared_memory_prefix}*"):
            segment.unlink(missing_ok=True)
        self._paths.remove()
