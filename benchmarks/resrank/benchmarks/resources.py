"""What the servers hold: memory, file descriptors and shared memory, process by process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from resrank.stack.sidecar_process import SidecarProcess
from resrank.stack.triton_process import TritonProcess

SIDECAR = "sidecar"
SERVER = "tritonserver"

_SHARED_MEMORY = Path("/dev/shm")
_STUB = "triton_python_backend_stub"
_MB = 1e6


@dataclass(frozen=True)
class Sample:
    """One look.

    Attributes:
        at_s: Seconds since the first look.
        memory_mb: Process to proportional set size in MB (1e6 bytes): its own pages, and its share of those that it
            shares, which so are counted once over all processes.
        resident_mb: Process to resident set size.
        descriptors: Process to open file descriptors.
        segments: Shared-memory segments of the Python backend.
        segments_mb: Their size.
    """

    at_s: float
    memory_mb: dict[str, float]
    resident_mb: dict[str, float]
    descriptors: dict[str, int]
    segments: int
    segments_mb: float


def look(triton: TritonProcess, sidecar: SidecarProcess, at_s: float) -> Sample:
    """Looks at all processes of both servers."""
    server = psutil.Process(triton.pid)
    named = {SERVER: server, SIDECAR: psutil.Process(sidecar.pid)}
    named |= {f"stub: {_model(child.cmdline())}": child for child in server.children(recursive=True) if _is_stub(child)}
    memory, resident, descriptors = {}, {}, {}
    for name, process in named.items():
        full = process.memory_full_info()
        memory[name], resident[name] = full.pss / _MB, full.rss / _MB
        descriptors[name] = process.num_fds()
    segments = list(_SHARED_MEMORY.glob(f"{triton.shared_memory_prefix}*"))
    size = sum(segment.stat().st_size for segment in segments) / _MB
    return Sample(at_s, memory, resident, descriptors, len(segments), size)


def groups(name: str) -> str:
    """Which of the three kinds of process one is: the sidecar, Triton itself, or a Python model's stub."""
    return name if name in (SIDECAR, SERVER) else "stubs"


def summed(per_process: dict[str, float], group: str) -> float:
    """What a group holds together."""
    return sum(value for name, value in per_process.items() if groups(name) == group)


def _is_stub(process: psutil.Process) -> bool:
    return _STUB in " ".join(process.cmdline()[:1])


def _model(command: Sequence[str]) -> str:
    """A stub is told the path of its model, ``…/MODEL/1/model.py``."""
    script = next((Path(part) for part in command if part.endswith("model.py")), None)
    return script.parent.parent.name if script is not None else "?"
