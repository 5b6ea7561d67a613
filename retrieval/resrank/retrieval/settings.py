"""How a sidecar is set up."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from resrank.core.errors import InvalidInputError
from resrank.core.server_tls import ServerTls, require_protection
from resrank.retrieval.store_url import LOCAL, StoreUrl

EXACT_INDEX = "Flat"
"""The FAISS index that misses nothing."""

CPU = "cpu"
"""The dense device that is always there."""

_DEVICE = re.compile(r"cpu|gpu(:[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class SidecarSettings:
    """Settings of one sidecar; the command's options and ``RESRANK_*`` variables of the same names fill it.

    Attributes:
        store: Where the collections are; a local folder is made if it does not exist.
        host: Address to listen on.
        port: Port to listen on; 0 lets the system choose.
        socket: Unix domain socket to listen on beside the port; None for the port alone.
        dense_index: FAISS index_factory string of a local store.
        dense_search_parameters: FAISS search-time parameters, for instance ``nprobe=16``; empty for none.
        dense_device: Where a local store's vectors are searched: ``cpu``, ``gpu`` (the first) or ``gpu:N``.
        search_threads: Searches that run at once, one core each.
        max_inflight: Requests admitted at once; the next one is refused with ``RESOURCE_EXHAUSTED``.
        transient: Whether it ends with the command that started it, which others are told in the folder's lock file.
        metrics_host: Address that the metrics page listens on.
        metrics_port: Its port; 0 lets the system choose, None shows none.
        drain_s: Seconds that requests in flight get to finish when the sidecar is told to stop.
        tls: Certificates for the port; None for plain text.
        bearer_key: What callers of the port must send; None lets everybody in.
        insecure: Whether it may listen beyond loopback without both.

    Raises:
        InvalidInputError: It would listen beyond loopback in plain text, or to callers who need no key and no
            certificate; the dense device has no such name, or is none of the store's.
    """

    store: StoreUrl
    host: str = "127.0.0.1"
    port: int = 8003
    socket: Path | None = None
    dense_index: str = EXACT_INDEX
    dense_search_parameters: str = ""
    dense_device: str = CPU
    search_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    max_inflight: int = 64
    transient: bool = False
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    drain_s: float = 10.0
    tls: ServerTls | None = None
    bearer_key: str | None = field(default=None, repr=False)
    insecure: bool = False

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.dense_device):
            raise InvalidInputError("dense_device", f"must be cpu, gpu or gpu:N, got {self.dense_device!r}")
        if self.dense_device != CPU and self.store.scheme != LOCAL:
            raise InvalidInputError("dense_device", f"is of local stores alone: {self.store} has an index of its own")
        require_protection(
            self.host,
            encrypted=self.tls is not None,
            authenticated=self.bearer_key is not None or (self.tls is not None and self.tls.client_ca is not None),
            remedy="give --tls-certificate and --tls-key, and --tls-client-ca or --bearer-key-file",
            insecure=self.insecure,
        )
        if self.metrics_port is not None:
            require_protection(
                self.metrics_host,
                encrypted=False,
                authenticated=False,
                remedy="metrics are never encrypted: keep --metrics-host on loopback",
                insecure=self.insecure,
                field="metrics_host",
            )
