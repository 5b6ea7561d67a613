"""A GPU that searches the dense index beside the CPU, which keeps all that it needs to do it alone.

FAISS's classic GPU indexes know no ``IDSelector``: they take one without a word and give back what it leaves out. So
filtered searches stay on the CPU. Of others a GPU finds a few more than are wanted, dead ones are left out, and cosines
come from the stored vectors; where that does not make sure of the answer, the CPU searches. So a GPU never answers
anything else than the CPU would.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError
from resrank.core.extras import install_command
from resrank.retrieval.local.vector_segment import UNIT_DEVIATION
from resrank.retrieval.records import FloatVector
from resrank.retrieval.settings import CPU

logger = logging.getLogger(__name__)

FIELD = "dense_device"

DEVIATION = 2 * UNIT_DEVIATION + 1e-4
"""How far a flat GPU index's score may be from the cosine: it rounds vectors and query to fp16 and adds up in fp32."""

MOST_RESULTS = 2048
"""What a GPU's index gives back at most."""

_TEMPORARY_BYTES = 256 << 20
"""Of a GPU's memory, for what a search computes: FAISS would take 1.5 GiB of a large one."""

_KINDS = (faiss.IndexFlat, faiss.IndexIVFFlat, faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer)


@dataclass(frozen=True)
class DenseDevice:
    """One GPU of this machine.

    Attributes:
        number: As CUDA counts.
        kinds: FAISS.
        resources: FAISS's memory and streams there. They are for one thread at a time.
    """

    number: int
    kinds: Any
    resources: Any
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """As :func:`open_device` takes it."""
        return f"gpu:{self.number}"

    def flat(self, dimension: int) -> PlacedIndex:
        """An empty index of inner products over fp16 vectors."""
        config = self.kinds.GpuIndexFlatConfig()
        config.device, config.useFloat16 = self.number, True
        with self.lock:
            return PlacedIndex(self, self.kinds.GpuIndexFlatIP(self.resources, dimension, config))

    def copy_of(self, index: Any) -> PlacedIndex:
        """A CPU's index, there.

        Raises:
            RuntimeError: FAISS has none of this kind for GPUs, or there is too little memory.
        """
        options = self.kinds.GpuClonerOptions()
        options.useFloat16 = True
        with self.lock:
            return PlacedIndex(self, self.kinds.index_cpu_to_gpu(self.resources, self.number, index, options))

    def require_kind(self, index: Any, factory: str) -> None:
        """Refuses what FAISS has on no GPU.

        Raises:
            InvalidInputError: It is such a kind.
        """
        if not isinstance(index, _KINDS):
            raise InvalidInputError(
                FIELD, f"a GPU takes the dense indexes Flat, IVFn,Flat, IVFn,PQm and IVFn,SQ…, not {factory!r}: use cpu"
            )


class PlacedIndex:
    """An index in a GPU's memory."""

    def __init__(self, device: DenseDevice, index: Any) -> None:
        self.device = device
        self._index = index

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Takes in vectors, fp32 [n, d].

        Raises:
            RuntimeError: There is too little memory.
        """
        with self.device.lock:
            self._index.add(vectors)

    def search(self, query: FloatVector, k: int) -> tuple[FloatVector, NDArray[np.int64]]:
        """Scores and rows of the k nearest, fewer where it finds no more.

        Raises:
            RuntimeError: CUDA failed.
        """
        with self.device.lock:
            scores, rows = self._index.search(query[np.newaxis], k)
        found = rows[0] >= 0
        return scores[0][found], rows[0][found]


def open_device(name: str, kinds: Any = faiss) -> DenseDevice | None:
    """Finds a GPU.

    Args:
        name: ``cpu``, ``gpu`` (the first) or ``gpu:N``.
        kinds: FAISS, of whatever build.

    Returns:
        It; None for the CPU.

    Raises:
        InvalidInputError: There is no such GPU, or this build of FAISS is for CPUs.
    """
    if name == CPU:
        return None
    _, _, number = name.partition(":")
    if not hasattr(kinds, "StandardGpuResources"):
        raise InvalidInputError(
            FIELD,
            f"{name} needs FAISS's GPU build, and this is the CPU's: {install_command('retrieval-gpu')}, or use cpu",
        )
    count = kinds.get_num_gpus()
    if int(number or 0) >= count:
        there = f"gpu:0 to gpu:{count - 1}" if count else "no GPU on this machine, or no driver of it"
        raise InvalidInputError(FIELD, f"FAISS finds {there}, got {name}: use cpu")
    resources = kinds.StandardGpuResources()
    resources.setTempMemory(_TEMPORARY_BYTES)
    return DenseDevice(int(number or 0), kinds, resources)


@lru_cache
def shared_device(name: str) -> DenseDevice | None:
    """The same for every collection of this process: each would else take temporary memory of its own."""
    return open_device(name)
