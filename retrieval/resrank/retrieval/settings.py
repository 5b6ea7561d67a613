"""How a sidecar is set up."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SidecarSettings:
    """Settings of one sidecar; the command's options and ``RESRANK_*`` variables of the same names fill it.

    Attributes:
        index: The index folder; made if it does not exist.
        host: Address to listen on.
        port: Port to listen on; 0 lets the system choose.
        socket: Unix domain socket to listen on beside the port; None for the port alone.
        dense_index: FAISS index_factory string.
        dense_search_parameters: FAISS search-time parameters, for instance ``nprobe=16``; empty for none.
        search_threads: Searches that run at once, one core each.
        max_inflight: Requests admitted at once; the next one is refused with ``RESOURCE_EXHAUSTED``.
        drain_s: Seconds that requests in flight get to finish when the sidecar is told to stop.
    """

    index: Path
    host: str = "127.0.0.1"
    port: int = 8003
    socket: Path | None = None
    dense_index: str = "Flat"
    dense_search_parameters: str = ""
    search_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    max_inflight: int = 64
    drain_s: float = 10.0
