"""Triton, the retrieval sidecar and, where it is wanted, the HTTP gateway side by side on this machine."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from resrank.core.collection_names import DEFAULT_COLLECTION
from resrank.core.errors import StackError
from resrank.core.limits import MAX_SOCKET_PATH_BYTES
from resrank.core.server_tls import ServerTls, is_loopback, require_protection
from resrank.core.sidecar.searching import encoder_mismatch
from resrank.export.manifest import read_manifest
from resrank.retrieval.store_url import StoreUrl
from resrank.stack.gateway_process import GatewayProcess
from resrank.stack.gpu import Machine
from resrank.stack.ports import choose_ports
from resrank.stack.process import ManagedProcess, describe_exit
from resrank.stack.repository_check import require_servable
from resrank.stack.running_sidecar import RunningSidecar
from resrank.stack.sidecar_process import SidecarProcess
from resrank.stack.trace_export import TraceExport
from resrank.stack.triton_process import TritonProcess

if TYPE_CHECKING:
    from resrank.stack.tuning.settings import TunedSettings

DRAIN_S = 20.0
"""How long requests under way may take to finish at a stop. With what ending the processes takes, a stop then stays
within the 30 s that container platforms usually give."""

_WATCH_S = 0.5
_HEALTH_EVERY_S = 10.0
_SILENCE_S = 60.0
"""How long a running process may leave health checks unanswered. Triton 2.51 was seen to hang in its own handler of a
segmentation fault, alive for its parent and deaf to everybody else."""

OnLine = Callable[[str, str], None]
"""Called with the name of a process (``triton``, ``retrieval`` or ``gateway``) and a line of its log."""


class LocalStack:
    """Starts the servers, says when they are ready, notices when one dies, and stops all.

    What was ready is never restarted: what died, or was stopped from outside, is reported with its last words. A
    model's process counts as much as a server: requests to its model would wait for ever.

    Args:
        repository: Model repository as ``resrank export`` writes it.
        index: Index folder, an empty or missing one is made, or a store's URL.
        host: Address that all listen on.
        triton_port: Triton's gRPC port; a free one when None.
        metrics_port: Triton's metrics port; a free one when None.
        retrieval_port: The sidecar's gRPC port; a free one when None.
        retrieval_metrics_port: The sidecar's metrics port; a free one when None.
        retrieval_socket: Unix domain socket between Triton and the sidecar; one in a folder of its own when None.
        joined: Target of a sidecar that runs already, on this machine: it is asked in place of one of its own, and what
            is said above of index and sidecar is not read. It may go and come back.
        http: Whether there is a gateway.
        http_port: The gateway's HTTP port; a free one when None.
        http_keys: File of the gateway's API keys; None lets everybody in whom ``tls`` does.
        tls: Certificates for all ports; None for plain text.
        bearer_key_file: File with the key that callers of the sidecar's port must send.
        insecure: Whether both may listen beyond loopback without TLS or to callers without a certificate. Metrics,
            which are never encrypted, stay on loopback else.
        log_dir: Folder for ``triton.log``, ``retrieval.log`` and ``gateway.log``; unnamed temporary files when None.
        on_line: Called with each line of all logs.
        trace_export: Where spans go; None where nothing is traced.
        tuned: Settings of this machine to serve it with, instead of the repository's own.

    Attributes:
        triton: The Triton process.
        sidecar: The sidecar process, or the one that was joined.
        gateway: The gateway process; None where there is none.
        encoder_sha256: The encoder of the repository, to which the index must belong.
        trace_export: Where spans go.

    Raises:
        InvalidInputError: It would listen beyond loopback unprotected, or join a sidecar of another machine.
        ManifestError: The repository has no readable manifest.
        StackError: This machine cannot serve the repository, a port is taken, or no Triton can be found.

    Example:
        >>> with LocalStack(Path("var/repository"), Path("var/index")) as stack:
        ...     client = ResRankClient(stack.triton.grpc_address, stack.sidecar.address)
    """

    def __init__(
        self,
        repository: Path,
        index: Path | StoreUrl,
        *,
        host: str = "127.0.0.1",
        triton_port: int | None = None,
        metrics_port: int | None = None,
        retrieval_port: int | None = None,
        retrieval_metrics_port: int | None = None,
        retrieval_socket: Path | None = None,
        joined: str | None = None,
        http: bool = False,
        http_port: int | None = None,
        http_keys: Path | None = None,
        tls: ServerTls | None = None,
        bearer_key_file: Path | None = None,
        insecure: bool = False,
        log_dir: Path | None = None,
        on_line: OnLine | None = None,
        trace_export: TraceExport | None = None,
        tuned: TunedSettings | None = None,
    ) -> None:
        require_protection(
            host,
            encrypted=tls is not None,
            authenticated=tls is not None and tls.client_ca is not None,
            remedy="give --tls-certificate, --tls-key and --tls-client-ca",
            insecure=insecure,
        )
        manifest = read_manifest(repository)
        require_servable(repository, manifest, Machine())
        self.encoder_sha256 = manifest.checkpoint.encoder_sha256
        self.trace_export = trace_export
        told = {} if trace_export is None else trace_export.environment
        metrics_host = host if insecure or is_loopback(host) else "127.0.0.1"
        self.sidecar: SidecarProcess | RunningSidecar
        self._own_socket: Path | None = None
        if joined is not None:
            self.sidecar = RunningSidecar.joined(joined)
            triton_port, metrics_port, control_port, http_port = choose_ports(
                host, triton_port, metrics_port, None, http_port
            )
        else:
            # All at once: no free port is one that another of them is told to take.
            retrieval_port, triton_port, metrics_port, retrieval_metrics_port, control_port, http_port = choose_ports(
                host, retrieval_port, triton_port, metrics_port, retrieval_metrics_port, None, http_port
            )
            self._own_socket = _socket_of_its_own() if retrieval_socket is None else None
            self.sidecar = SidecarProcess(
                index,
                host=host,
                port=retrieval_port,
                socket=retrieval_socket or self._own_socket,
                tls=tls,
                bearer_key_file=bearer_key_file,
                insecure=insecure,
                metrics_host=metrics_host,
                metrics_port=retrieval_metrics_port,
                environment=told,
                log_path=None if log_dir is None else log_dir / "retrieval.log",
                on_line=None if on_line is None else lambda line: on_line("retrieval", line),
            )
        self._derived = None if tuned is None else _derived(repository, tuned)
        try:
            self.triton = TritonProcess(
                repository if self._derived is None else Path(self._derived.name),
                host=host,
                grpc_port=triton_port,
                metrics_port=metrics_port,
                control_port=control_port,
                tls=tls,
                metrics_host=metrics_host,
                trace_export=trace_export,
                retrieval=self.sidecar.local_target,
                log_path=None if log_dir is None else log_dir / "triton.log",
                on_line=None if on_line is None else lambda line: on_line("triton", line),
            )
            self.gateway: GatewayProcess | None = None
            if http:
                self.gateway = GatewayProcess(
                    self.triton.local_target,
                    self.sidecar.local_target,
                    host=host,
                    port=http_port,
                    tls=tls,
                    keys=http_keys,
                    insecure=insecure,
                    environment=told,
                    log_path=None if log_dir is None else log_dir / "gateway.log",
                    on_line=None if on_line is None else lambda line: on_line("gateway", line),
                )
        except BaseException:
            self._discard_derived()
            raise

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def processes(self) -> tuple[ManagedProcess, ...]:
        """Those that it started, in the order in which they are needed."""
        own = (self.sidecar,) if isinstance(self.sidecar, SidecarProcess) else ()
        return (*own, self.triton) if self.gateway is None else (*own, self.triton, self.gateway)

    def start(self) -> None:
        """Starts the processes without waiting for them.

        Raises:
            ServerUnavailableError: No sidecar answers where one was to be joined.
            StackError: One could not be started, or all that the joined sidecar has belongs to other encoders.
        """
        if isinstance(self.sidecar, RunningSidecar):
            self.sidecar.require_place_for(self.encoder_sha256)
        for process in self.processes:
            process.start()

    def wait_ready(self, cancelled: threading.Event | None = None) -> bool:
        """Waits until all are ready.

        Args:
            cancelled: Ends the wait early when set.

        Returns:
            True when all are ready, False when cancelled.

        Raises:
            StackError: One ended or was not ready in time, with the last lines of its log, or all that the index holds
                belongs to other encoders than the repository's.
        """
        if not all(process.wait_ready(cancelled) for process in self.processes):
            return False
        for process in self.processes:  # the one that was ready first may have died while the other loaded
            process.check_alive()
        if isinstance(self.sidecar, RunningSidecar):
            return True
        encoders = {name: encoder for name, encoder in self.sidecar.encoders().items() if encoder}
        # One collection may be of another checkpoint, which served before this one, or serves beside it.
        if encoders and self.encoder_sha256 not in encoders.values():
            other = encoders.get(DEFAULT_COLLECTION, next(iter(encoders.values())))
            raise StackError(f"{self.sidecar.index}: {encoder_mismatch(other, self.encoder_sha256)}")
        return True

    def watch(self, stop: threading.Event) -> None:
        """Returns when told to stop.

        Args:
            stop: Set by the caller, for instance from a signal handler.

        Raises:
            StackError: One of the processes, Python models' among them, ended, was stopped or answers no more; the
                message has the last lines of its log.
        """
        asked = time.monotonic()
        answered = dict.fromkeys(self.processes, asked)
        while not stop.wait(_WATCH_S):
            for process in self.processes:
                process.check_alive()
            now = time.monotonic()
            if now - asked < _HEALTH_EVERY_S:
                continue
            asked = now
            for process in self.processes:
                if process.is_ready():
                    answered[process] = now
                elif now - answered[process] > _SILENCE_S:
                    raise StackError(
                        f"{process.name} runs but has answered no health check for {now - answered[process]:.0f} s. "
                        f"Its last lines:\n{process.log_tail()}"
                    )

    def stop(
        self, *, drain_s: float = DRAIN_S, grace_s: float = 30.0, hurry: threading.Event | None = None
    ) -> list[str]:
        """Ends the gateway, then Triton, then the sidecar, which searches need, each when it has answered; repeatable.

        Args:
            drain_s: Seconds that requests under way get.
            grace_s: Seconds that a process then gets to end, before it is killed.
            hurry: Does not wait for requests any more when set.

        Returns:
            A sentence for each thing that did not go as it should: requests cut off, a process that crashed.
        """
        remarks = []
        if self.gateway is not None:
            self._drain(self.gateway, drain_s, hurry)
            remarks += self._end(self.gateway, grace_s)
        if not self.triton.drain(drain_s, hurry):
            remarks.append("requests were still under way when Triton was told to end")
        remarks += self._end(self.triton, grace_s)
        if isinstance(self.sidecar, SidecarProcess):
            remarks += self._end(self.sidecar, grace_s)
        if self._own_socket is not None:  # a sidecar that was killed has left it
            shutil.rmtree(self._own_socket.parent, ignore_errors=True)
        self._discard_derived()
        return remarks

    @staticmethod
    def _drain(gateway: GatewayProcess, limit_s: float, hurry: threading.Event | None) -> None:
        """Tells it to end, which it does when it has answered what it has."""
        gateway.terminate()
        deadline = time.monotonic() + limit_s
        while gateway.started and gateway.returncode is None and time.monotonic() < deadline:
            if hurry is not None and hurry.is_set():
                return
            time.sleep(0.05)

    @staticmethod
    def _end(process: ManagedProcess, grace_s: float) -> list[str]:
        returncode = process.stop(grace_s)
        if returncode in (None, 0, -signal.SIGTERM):  # the last one: before it could be told to end otherwise
            return []
        return [f"{process.name} {describe_exit(returncode)} while it was stopped"]

    def _discard_derived(self) -> None:
        if self._derived is not None:
            self._derived.cleanup()


def _socket_of_its_own() -> Path:
    """A path in a folder that the sidecar will make for it and remove.

    In the folder for temporary files where the path is short enough for a socket, else in ``/tmp``.
    """
    name = Path(f"resrank-{secrets.token_hex(8)}", "retrieval.sock")
    usual = Path(tempfile.gettempdir()) / name
    return usual if len(os.fsencode(usual)) <= MAX_SOCKET_PATH_BYTES else Path("/tmp") / name


def _derived(repository: Path, tuned: TunedSettings) -> tempfile.TemporaryDirectory[str]:
    """The repository with this machine's settings, in a folder that goes with the stack or with this process."""
    from resrank.stack.tuning.repository import derive

    folder = tempfile.TemporaryDirectory(prefix="resrank-tuned-")
    derive(repository, tuned, Path(folder.name))
    return folder
