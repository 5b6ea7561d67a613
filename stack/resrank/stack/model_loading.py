"""How far the start of a Triton has come: which models still load, and whether anything happens at all.

Triton 2.51 was seen to begin and never to end one: a Python model's ``initialize`` waits for an answer of the server's,
for instance to a metric that it creates, and the server for the model.
"""

from __future__ import annotations

import re
import threading
import time

import psutil

STALLED_S = 30.0
"""How long nothing may happen. What loads computes or reads: an engine takes seconds of a core."""

_IDLE_CPU_S = 0.5
"""What all processes of a server may compute meanwhile: thirteen loaded models without requests took 0.12 s."""

_LOOK_EVERY_S = 1.0
_BEGUN = re.compile(r'"loading: (?P<model>[^"]+):\d+"')
_ENDED = re.compile(r"\"(?:successfully loaded|failed to load) '(?P<model>[^']+)'")
_AT_WORK = (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)


class ModelLoading:
    """One start of one server.

    Args:
        stalled_s: How long nothing may happen, in seconds; ``STALLED_S`` when None.
    """

    def __init__(self, stalled_s: float | None = None) -> None:
        self.stalled_s = STALLED_S if stalled_s is None else stalled_s
        self._lock = threading.Lock()
        self._models: set[str] = set()
        self._looked = self._since = time.monotonic()
        self._cpu_s = 0.0
        self._stalls = False

    def read(self, line: str) -> None:
        """Takes notice of a line of the server's log; may be called from another thread."""
        for pattern, change in ((_BEGUN, self._models.add), (_ENDED, self._models.discard)):
            found = pattern.search(line)
            if found is not None:
                with self._lock:
                    change(found["model"])
                    self._since = time.monotonic()

    @property
    def models(self) -> list[str]:
        """Names of the models that have begun to load and not ended."""
        with self._lock:
            return sorted(self._models)

    def stalls(self, server: psutil.Process) -> bool:
        """Whether for so long no model was done, nothing computed and nothing was read from a disk.

        A process that the kernel keeps waiting for a core is at work, however little it gets.

        Args:
            server: The server's process.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return self._stalls
        self._looked = now
        cpu_s, at_work = _activity(server)
        with self._lock:
            if at_work or abs(cpu_s - self._cpu_s) > _IDLE_CPU_S:
                self._since, self._cpu_s = now, cpu_s
            self._stalls = now - self._since >= self.stalled_s
        return self._stalls


def _activity(server: psutil.Process) -> tuple[float, bool]:
    """Processor seconds of a process and its descendants, and whether one is running, or waits for a core or a disk."""
    cpu_s, at_work = 0.0, False
    try:
        family = [server, *server.children(recursive=True)]
    except psutil.NoSuchProcess:
        return cpu_s, at_work
    for process in family:
        try:
            with process.oneshot():
                times = process.cpu_times()
                cpu_s += times.user + times.system
                at_work |= process.status() in _AT_WORK
        except psutil.NoSuchProcess:
            continue
    return cpu_s, at_work
