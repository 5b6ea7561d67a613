"""A child process that leaves nothing behind: started in a group of its own, logged to a file, ended with its group."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import psutil

from resrank.core.durability import private
from resrank.core.errors import StackError
from resrank.stack.log_follower import LogFollower
from resrank.stack.standstill import Standstill

_TAIL_BYTES = 64 * 1024
_READY_POLL_S = 0.1
_EXIT_POLL_S = 0.05
_KILL_WAIT_S = 5.0
_UMASK = 0o077
"""What a child makes is its user's alone."""
_UNNAMED_LOG_BYTES = 64 * 1024 * 1024


@functools.cache
def _spawner() -> ThreadPoolExecutor:
    """The one thread that starts children.

    The kernel's parent-death signal follows the *thread* that forked, so a child started from a short-lived thread
    would be told to end when that thread does. This thread lives as long as the interpreter.
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="resrank-spawn")


class ManagedProcess:
    """One child process with its descendants.

    The child leads a process group of its own, so a Ctrl-C in the terminal reaches only the caller, who can then
    drain; it receives SIGTERM when the caller dies; and whatever it leaves running is killed once it has ended.

    Args:
        name: What messages call it, for instance ``tritonserver``.
        command: Program and arguments.
        environment: The complete environment; the caller's when None.
        log_path: File that stdout and stderr are appended to; an unnamed temporary file when None, of which the disk
            keeps the end alone when it has grown by 64 MiB.
        on_line: Called with each line that the child writes, in a thread of its own.
        ready_timeout_s: How long :meth:`wait_ready` waits.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | os.PathLike[str]],
        *,
        environment: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        ready_timeout_s: float = 60.0,
    ) -> None:
        self.name = name
        self.command = [os.fspath(part) for part in command]
        self.environment = None if environment is None else dict(environment)
        self.log_path = log_path
        self.ready_timeout_s = ready_timeout_s
        self._on_line = on_line
        self._follower: LogFollower | None = None
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._standstill: Standstill | None = None
        self._log: BinaryIO | None = None
        self._tail = b""

    def __enter__(self) -> Self:
        self.start()
        try:
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
    def pid(self) -> int:
        """Process id, which is also the id of the process group."""
        return self._started().pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal as in :mod:`subprocess`; None while it runs."""
        with self._lock:
            process = self._started()
            if process.returncode is None and self._has_exited():
                self._reap()
            return process.returncode

    @property
    def started(self) -> bool:
        """Whether it was ever started."""
        return self._process is not None

    def start(self) -> Self:
        """Starts the child.

        Raises:
            StackError: The program or the log file cannot be opened, or it was started before.
        """
        if self._process is not None:
            raise StackError(f"{self.name} was already started: a ManagedProcess runs once")
        path = None if self.environment is None else self.environment.get("PATH")
        if shutil.which(self.command[0], path=path) is None:
            raise StackError(f"{self.name} could not be started: there is no program {self.command[0]}")
        lifeline = Path(__file__).with_name("lifeline.py")
        # -I and -S: the lifeline needs nothing but the standard library, and no environment may change what it does.
        command = [sys.executable, "-I", "-S", str(lifeline), str(os.getpid()), *self.command]
        try:
            if self.log_path is None:
                self._log = tempfile.TemporaryFile(prefix=f"{self.name}-", suffix=".log")  # noqa: SIM115 - lives on
                # Two write to it: the child, and whoever starts it once more.
                fcntl.fcntl(self._log, fcntl.F_SETFL, fcntl.fcntl(self._log, fcntl.F_GETFL) | os.O_APPEND)
            else:
                self.log_path.parent.mkdir(parents=True, exist_ok=True)
                self._log = open(self.log_path, "ab+", opener=private)  # noqa: SIM115 - lives on
            limit = _UNNAMED_LOG_BYTES if self.log_path is None else None
            # Before the child writes its first line.
            self._follower = LogFollower(self._log, self._on_line or (lambda line: None), limit)
            self._process = (
                _spawner()
                .submit(
                    subprocess.Popen,
                    command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    umask=_UMASK,
                )
                .result()
            )
        except OSError as error:
            self._close_log()
            raise StackError(f"{self.name} could not be started: {error}") from error
        self._standstill = Standstill(psutil.Process(self._process.pid))
        return self

    def is_ready(self) -> bool:
        """Whether the child answers: a subclass asks it. Does not wait."""
        return self.returncode is None

    def check_alive(self) -> None:
        """Does nothing while the child runs.

        Raises:
            StackError: It has ended or was stopped; the message has the last lines of its log.
        """
        returncode = self.returncode
        if returncode is not None:
            raise StackError(f"{self.name} {describe_exit(returncode)}. Its last lines:\n{self.log_tail()}")
        if self._stands_still():
            raise StackError(
                f"{self.name} was stopped (SIGSTOP) and does not go on. Its last lines:\n{self.log_tail()}"
            )

    def wait_ready(self, cancelled: threading.Event | None = None) -> bool:
        """Waits until :meth:`is_ready`, for at most ``ready_timeout_s``.

        Args:
            cancelled: Ends the wait early when set.

        Returns:
            True when ready, False when cancelled.

        Raises:
            StackError: The child ended or was not ready in time; the message has the last lines of its log.
        """
        cancelled = cancelled or threading.Event()
        deadline = time.monotonic() + self.ready_timeout_s
        while not cancelled.wait(_READY_POLL_S):
            self.check_alive()
            if self.is_ready():
                return True
            if time.monotonic() > deadline:
                raise StackError(
                    f"{self.name} was not ready after {self.ready_timeout_s:g} s{self._unfinished()}. "
                    f"Its last lines:\n{self.log_tail()}"
                )
        return False

    def terminate(self) -> None:
        """Asks the child to finish what it is doing and end (SIGTERM), without waiting."""
        if self._process is not None and self.returncode is None:
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the child and everything it started at once (SIGKILL); what waits for it learns that at once, too."""
        process = self._process
        if process is None:
            return
        with self._lock:
            if process.returncode is None:
                self._signal(signal.SIGKILL)
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
                self._reap()

    def stop(self, grace_s: float = 30.0) -> int | None:
        """Ends the child and everything it started; harmless when it has ended or was never started.

        Args:
            grace_s: Seconds between SIGTERM and SIGKILL.

        Returns:
            The exit status, or None when it was never started.
        """
        process = self._process
        if process is None:
            return None
        if self.returncode is None and self._stands_still():
            self.kill()  # it would not hear of anything else
        self.terminate()
        deadline = time.monotonic() + grace_s
        while self.returncode is None and time.monotonic() < deadline:
            time.sleep(_EXIT_POLL_S)
        self.kill()
        return process.returncode

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of stdout and stderr, without a newline at the end."""
        with self._lock:
            data = self._tail if self._log is None or self._log.closed else self._read_tail()
        told = [text for line in data.decode("utf-8", "replace").splitlines() if (text := self._told(line)) is not None]
        return "\n".join(told[-lines:])

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise StackError(f"{self.name} was not started")
        return self._process

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            process = self._started()
            if process.returncode is None:  # not reaped yet, so the id cannot belong to anybody else
                process.send_signal(number) if number == signal.SIGTERM else os.killpg(process.pid, number)

    def _stands_still(self) -> bool:
        try:
            return self._standstill is not None and self._standstill.lasts()
        except psutil.NoSuchProcess:
            return False

    def _has_exited(self) -> bool:
        # WNOWAIT leaves the zombie in place: as long as it is there, nobody else can get the group's id.
        return os.waitid(os.P_PID, self._started().pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def _reap(self) -> None:
        process = self._started()
        members = [member for member in _group(process.pid) if member.pid != process.pid]
        if members:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        psutil.wait_procs(members, timeout=_KILL_WAIT_S)
        self._ended()
        self._close_log()

    def _told(self, line: str) -> str | None:
        """What a message shows of a log line; None where a subclass leaves out what only fills the screen."""
        return line

    def _unfinished(self) -> str:
        """What a start that is not ready in time still waits for, as the end of a sentence."""
        return ""

    def _start_again(self, why: str) -> None:
        """Ends a child that was never ready, and starts another one in its place; the log says so."""
        self.kill()
        self._process = None
        self.start()
        assert self._log is not None
        os.write(self._log.fileno(), f"resrank: {why}: started once more\n".encode())

    def _ended(self) -> None:
        """Called once, when the child and its descendants are gone: what a subclass must clear up."""

    def _close_log(self) -> None:
        if self._follower is not None:
            self._follower.close()
        if self._log is not None:
            self._tail = self._read_tail()
            self._log.close()

    def _read_tail(self) -> bytes:
        if self._log is None:
            return b""
        descriptor = self._log.fileno()
        return os.pread(descriptor, _TAIL_BYTES, max(0, os.fstat(descriptor).st_size - _TAIL_BYTES))


def describe_exit(returncode: int) -> str:
    """Says how a process ended: ``exited with status 1`` or ``was killed by SIGKILL``."""
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"exited with status {returncode}"


def _group(group_id: int) -> list[psutil.Process]:
    """The live processes of a process group."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group_id and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (psutil.NoSuchProcess, ProcessLookupError):  # it ended between the listing and the question
            continue
    return members
