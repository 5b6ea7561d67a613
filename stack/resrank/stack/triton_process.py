"""A running ``tritonserver`` on one model repository, bound to loopback unless told otherwise."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Self

import psutil

from resrank.core.addresses import bare_host, join_address
from resrank.core.errors import StackError
from resrank.core.names import RETRIEVAL_SOCKET_VARIABLE, RETRIEVAL_URL_VARIABLE, Model
from resrank.core.server_tls import ServerTls
from resrank.stack.model_loading import ModelLoading
from resrank.stack.model_processes import ModelProcesses
from resrank.stack.plain_paths import PlainPaths
from resrank.stack.ports import choose_ports, is_every_address
from resrank.stack.process import ManagedProcess, describe_exit
from resrank.stack.trace_export import TraceExport
from resrank.stack.triton_control import TritonControl
from resrank.stack.triton_install import TritonInstall, find_triton
from resrank.stack.triton_log import told

_SHARED_MEMORY = Path("/dev/shm")
_STUB_TIMEOUT_S = 300
"""How long Triton waits for a Python model to initialise. Its own 30 s are too few for compiling an engine."""

SHARED_MEMORY_PREFIX = "triton_python_backend_shm_region_"
"""Triton 25.01 and later refuse to register segments whose names begin so."""

_CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
_LOCK_LOST = "boost::interprocess::lock_exception"
"""How Triton 2.51, or one of its models' processes, was seen to die at the start on a machine without a free core."""

_READY_S = 1.0
_CONTROL_S = 5.0
_DRAIN_POLL_S = 0.05

SERVING_FLAGS = (
    "--disable-auto-complete-config",
    "--strict-readiness=true",
    f"--backend-config=python,stub-timeout-seconds={_STUB_TIMEOUT_S}",
)
"""How a repository that export wrote is served anywhere: the container image in ``deploy/docker`` has them too."""


class TritonProcess(ManagedProcess):
    """Starts Triton on a model repository, waits until every model is ready, and stops it without leftovers.

    Models load once, configs are taken as written (``--disable-auto-complete-config``), and readiness means that all
    models are ready. Models can be unloaded (``--model-control-mode=explicit``), which is how requests under way are
    let finish at a stop: by this object alone (:class:`~resrank.stack.triton_control.TritonControl`); gRPC refuses to
    steer. The Python backend's shared-memory segments get a prefix of this process's own, so that what a killed server
    leaves in ``/dev/shm`` can be told from others' and removed.

    A start that crashes or in which nothing happens any more (:class:`~resrank.stack.model_loading.ModelLoading`) is
    begun once more, with a line in the log: nobody has been promised anything yet. A model that cannot be loaded is
    not: that would only take longer.

    Args:
        repository: Model repository folder.
        host: Address to listen on.
        grpc_port: Port for gRPC; a free one when None.
        metrics_port: Port for the Prometheus metrics; a free one when None.
        control_port: Port on loopback by which this object steers the server; a free one when None.
        tls: Certificates for gRPC; None for plain text.
        metrics_host: Address for the metrics, which are never encrypted; ``host`` when None.
        retrieval: Target of the retrieval sidecar, for the ``search`` model; None for what the environment says.
        trace_export: Where spans go; None where nothing is traced.
        log_path: File for the server's log; an unnamed temporary file when None.
        on_line: Called with each line of the server's log, in a thread of its own.
        ready_timeout_s: How long :meth:`wait_ready` waits.
        exit_timeout_s: How long Triton waits for its models to end when it is told to end.
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
        control_port: int | None = None,
        tls: ServerTls | None = None,
        metrics_host: str | None = None,
        retrieval: str | None = None,
        trace_export: TraceExport | None = None,
        log_path: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        ready_timeout_s: float = 300.0,
        exit_timeout_s: int = 10,
        install: TritonInstall | None = None,
    ) -> None:
        if not repository.is_dir():
            raise StackError(f"{repository} is not a folder: give a model repository, as resrank export writes it")
        self.install = find_triton() if install is None else install
        self.repository = repository
        self._paths = PlainPaths()
        self.host = host
        self.metrics_host = metrics_host or host
        self.grpc_port, self.metrics_port, control_port = choose_ports(host, grpc_port, metrics_port, control_port)
        self._tls = tls
        self._control = TritonControl(control_port)
        self.shared_memory_prefix = f"{SHARED_MEMORY_PREFIX}resrank_{os.getpid()}_{secrets.token_hex(4)}_"
        self._models: ModelProcesses | None = None
        self._loading: ModelLoading | None = None
        self._on_own_line = on_line
        variables = {} if retrieval is None else _told_of(retrieval)
        if trace_export is not None:
            variables |= trace_export.environment
        self._trace_export = trace_export
        super().__init__(
            "tritonserver",
            [self.install.executable, *self._flags(exit_timeout_s)],
            # CUDA's own order puts the fastest GPU first; the numbers in a repository are nvidia-smi's.
            environment={"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **os.environ, **variables, **self.install.environment},
            log_path=log_path,
            on_line=self._read_line,
            ready_timeout_s=ready_timeout_s,
        )

    @property
    def grpc_address(self) -> str:
        """``host:port`` of the gRPC endpoint."""
        return join_address(self.host, self.grpc_port)

    @property
    def local_target(self) -> str:
        """How processes here reach gRPC: who listens on all addresses is asked by the name that certificates have."""
        return join_address("localhost", self.grpc_port) if is_every_address(self.host) else self.grpc_address

    @property
    def metrics_address(self) -> str:
        """``host:port`` of the Prometheus endpoint (``http://…/metrics``)."""
        return join_address(self.metrics_host, self.metrics_port)

    def start(self) -> Self:
        """See :meth:`ManagedProcess.start`."""
        self._loading = ModelLoading()
        return super().start()

    def is_ready(self) -> bool:
        """Whether the server and all its models are ready, and their processes run."""
        return self._control.is_ready(_READY_S) and self._model_failure() is None

    def check_alive(self) -> None:
        """Does nothing while the server and, once all is loaded, the process of every Python model run.

        Raises:
            StackError: One has ended or was stopped; the message has the last lines of the log.
        """
        super().check_alive()
        failure = self._model_failure()
        if failure is not None:
            raise StackError(f"{self.name}: {failure}. Its last lines:\n{self.log_tail()}")
        stall = self._stall()
        if stall is not None:
            raise StackError(f"{stall}. Its last lines:\n{self.log_tail()}")

    def wait_ready(self, cancelled: threading.Event | None = None) -> bool:
        """See :meth:`ManagedProcess.wait_ready`; from then on the models' processes are watched.

        A start that crashes or stalls is begun once more, and has all of ``ready_timeout_s`` again.
        """
        try:
            ready = super().wait_ready(cancelled)
        except StackError:
            why = self._reason_to_start_again()
            if why is None:
                raise
            self._start_again(why)
            ready = super().wait_ready(cancelled)
        if ready:
            self._loading = None
            self._control.hide_keys(self.pid)
            for segment in self._segments():  # Boost makes them readable by all, whatever the umask
                segment.chmod(0o600)
            self._models = ModelProcesses(self.pid)
        return ready

    def drain(self, limit_s: float, hurry: threading.Event | None = None) -> bool:
        """Takes no more requests and lets those under way finish; the server is not ready from then on.

        Models are unloaded, those that call others first: at a signal alone Triton 2.51 ends every ensemble at its
        next step. New requests are told that the model has no versions, which clients of ours take for a server that
        goes away.

        Args:
            limit_s: How long they may take together.
            hurry: Ends the wait early when set.

        Returns:
            Whether nothing was cut off; of a server that was never ready, or whose model died, nothing is left to
            finish.
        """
        if self._models is None or self.returncode is not None or self._model_failure() is not None:
            return True
        self._models = None  # from here on they end because they are told to
        hurry = hurry or threading.Event()
        deadline = time.monotonic() + limit_s
        try:
            return all(self._unload(models, deadline, hurry) for models in self._unloading_order())
        except (OSError, HTTPException, StackError):
            return False  # it has died or hangs, which the stop will tell

    def stop(self, grace_s: float = 30.0) -> int | None:
        """See :meth:`ManagedProcess.stop`. A server whose model died is killed: it would wait for the dead."""
        if self._process is not None and self.returncode is None and self._model_failure() is not None:
            self.kill()
        returncode = super().stop(grace_s)
        self._paths.remove()
        return returncode

    def _read_line(self, line: str) -> None:
        loading = self._loading
        if loading is not None:
            loading.read(line)
        if self._on_own_line is not None:
            self._on_own_line(line)

    def _unload(self, models: list[str], deadline: float, hurry: threading.Event) -> bool:
        for model in models:
            self._control.unload(model, _CONTROL_S)
        while time.monotonic() < deadline and not hurry.wait(_DRAIN_POLL_S):
            states = self._control.models(_CONTROL_S)
            if not any(states.get(model) == "UNLOADING" for model in models):
                return True
        return False

    def _unloading_order(self) -> list[list[str]]:
        """The loaded models, callers before what they call: models that call models, ensembles, the rest."""
        loaded = [model for model, state in self._control.models(_CONTROL_S).items() if state == "READY"]
        callers = [model for model in loaded if model in (Model.SEARCH, Model.RERANK_TEXT)]
        ensembles = self._control.ensembles(loaded, _CONTROL_S)
        return [callers, ensembles, [model for model in loaded if model not in {*callers, *ensembles}]]

    def _segments(self) -> list[Path]:
        return list(_SHARED_MEMORY.glob(f"{self.shared_memory_prefix}*"))

    def _model_failure(self) -> str | None:
        return None if self._models is None else self._models.failure()

    def _flags(self, exit_timeout_s: int) -> list[str]:
        flags = [
            f"--model-repository={self._paths.plain(self.repository)}",
            *SERVING_FLAGS,
            "--model-control-mode=explicit",
            "--load-model=*",
            *self._control.flags,
            f"--exit-timeout-secs={exit_timeout_s}",
            f"--grpc-address={join_address(self.host, self.grpc_port).rpartition(':')[0]}",
            f"--grpc-port={self.grpc_port}",
            # Its HTTP library tells an IPv6 address by this word before it (libevhtp, evhtp_bind_socket).
            f"--metrics-address={'ipv6:' * (':' in self.metrics_host)}{bare_host(self.metrics_host)}",
            f"--metrics-port={self.metrics_port}",
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory_prefix}",
        ]
        if self._trace_export is not None:
            flags += self._trace_export.triton_flags
        if self._tls is not None:
            flags += ["--grpc-use-ssl=true", f"--grpc-server-cert={self._tls.certificate.absolute()}"]
            flags.append(f"--grpc-server-key={self._tls.key.absolute()}")
            if self._tls.client_ca is not None:
                flags += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self._tls.client_ca.absolute()}"]
        if self.install.backend_directory is not None:
            flags.append(f"--backend-directory={self._paths.plain(self.install.backend_directory)}")
        return flags

    def _told(self, line: str) -> str | None:
        return told(line)

    def _unfinished(self) -> str:
        models = () if self._loading is None else self._loading.models
        return f"; still loading: {', '.join(models)}" if models else ""

    def _stall(self) -> str | None:
        loading = self._loading
        if loading is None or not loading.stalls(psutil.Process(self.pid)):
            return None
        return f"{self.name}: nothing has happened in its start for {loading.stalled_s:g} s{self._unfinished()}"

    def _reason_to_start_again(self) -> str | None:
        """What ended a start that may well succeed the next time; None for what would only be repeated."""
        if self.returncode is None:
            return self._stall()
        if -self.returncode in _CRASHES or _LOCK_LOST in self.log_tail():
            return f"{self.name} {describe_exit(self.returncode)} before it was ready{self._unfinished()}"
        return None

    def _ended(self) -> None:
        # A server that ended well has removed its segments; one that was killed cannot.
        for segment in self._segments():
            segment.unlink(missing_ok=True)


def _told_of(retrieval: str) -> dict[str, str]:
    """Variables by which the ``search`` model finds a sidecar, in place of what the environment says."""
    if retrieval.startswith("unix:"):
        return {RETRIEVAL_SOCKET_VARIABLE: retrieval.removeprefix("unix:").removeprefix("//")}
    return {RETRIEVAL_SOCKET_VARIABLE: "", RETRIEVAL_URL_VARIABLE: retrieval}
