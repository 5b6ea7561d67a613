"""The processes in which Triton's Python backend runs models, watched from outside.

Triton 2.51 does not: one that was killed stays a zombie, requests to its model are never answered, and the server and
the model go on to say that they are ready.
"""

from __future__ import annotations

import signal
from pathlib import Path

import psutil

from resrank.stack.standstill import STOPPED_S, Standstill

_STUB = "triton_python_backend_stub"
_INSTANCE = -2
"""Where a stub's command line has the instance's name (``encoder_0_0``); the last argument is the runtime's."""


class ModelProcesses:
    """The Python models' processes of one running server.

    Args:
        server_pid: Triton's process, whose models are loaded: what starts later is not watched.
        patience_s: How long one may stand still; 0 for who looks once.
    """

    def __init__(self, server_pid: int, *, patience_s: float = STOPPED_S) -> None:
        self._stubs: list[tuple[str, psutil.Process, Standstill]] = []
        for child in psutil.Process(server_pid).children():
            try:
                # Of a zombie the kernel keeps 15 letters of its name and nothing else.
                if child.name().startswith(_STUB[:15]):
                    self._stubs.append((_instance(child), child, Standstill(child, patience_s)))
            except psutil.NoSuchProcess:
                continue

    def failure(self) -> str | None:
        """Says which model's process has ended or was stopped; None while all run."""
        for name, process, standstill in self._stubs:
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    return f"the process of model instance {name} {_end(process.pid)}"
                if standstill.lasts():
                    return f"the process of model instance {name} was stopped (SIGSTOP) and does not go on"
            except psutil.NoSuchProcess:
                return f"the process of model instance {name} is gone"
        return None


def _instance(stub: psutil.Process) -> str:
    try:
        return stub.cmdline()[_INSTANCE]
    except (psutil.ZombieProcess, IndexError):
        return "(unknown)"


def _end(pid: int) -> str:
    """How a process ended that its parent has not asked about: the last field of ``/proc/PID/stat`` says."""
    try:
        status = int(Path(f"/proc/{pid}/stat").read_text().rsplit(maxsplit=1)[-1])
    except (OSError, ValueError):
        return "ended"
    number = status & 0x7F
    if number == signal.SIGKILL:
        return "was killed by SIGKILL; where nobody did that, the machine or its container ran out of memory"
    return f"was killed by {signal.Signals(number).name}" if number else f"exited with status {status >> 8}"
