"""One GPU through NVIDIA's binding of the CUDA runtime: the memory, the stream and the copies that an engine needs."""

from __future__ import annotations

import ctypes
import importlib
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.serving.engines.base import EngineError

_GIB = 1 << 30


class Gpu:
    """One GPU of this machine with one stream on it, for one engine.

    Attributes:
        name: What NVIDIA calls it.
        capability: Compute capability, for instance (8, 9).
    """

    def __init__(self, device: int) -> None:
        """Opens the GPU.

        Args:
            device: CUDA ordinal.

        Raises:
            EngineError: The binding is missing, or the machine has no driver, an old one, or no such GPU.
        """
        try:
            self._cuda = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise EngineError(
                f"cuda-bindings is not installed ({error}): pip install 'resrank[tensorrt]' or 'resrank[tensorrt-rtx]'"
            ) from error
        self._device = device
        count = self._count()
        if not 0 <= device < count:
            raise EngineError(f"GPU {device} is asked for, but this machine has {count}, counted from 0")
        self.make_current()
        attribute = self._cuda.cudaDeviceAttr
        self.capability: tuple[int, int] = (
            self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, device),
            self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, device),
        )
        self.name: str = self._call("cudaGetDeviceProperties", device).name.decode()
        # Non-blocking: another instance's work on the default stream shall not hold this one up.
        self._stream = self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
        weakref.finalize(self, self._cuda.cudaStreamDestroy, self._stream)

    @property
    def stream(self) -> int:
        """The stream's handle, as other libraries take it."""
        return int(self._stream)

    def __str__(self) -> str:
        """For error messages: ``GPU 0 (NVIDIA L4, compute capability 8.9)``."""
        return f"GPU {self._device} ({self.name}, compute capability {self.capability[0]}.{self.capability[1]})"

    def make_current(self) -> None:
        """Makes this thread's CUDA calls go to this GPU; to be called before them on every thread."""
        self._call("cudaSetDevice", self._device)

    def allocate(self, size: int) -> DeviceBuffer:
        """Reserves memory on the GPU, until the result is dropped.

        Args:
            size: Bytes.

        Raises:
            EngineError: There is not as much left.
        """
        return DeviceBuffer(self._call("cudaMalloc", size, size=size), size, self._cuda)

    def allocate_pinned(self, size: int) -> PinnedBuffer:
        """Reserves page-locked memory on the host, which the GPU copies from and to by itself.

        Args:
            size: Bytes.

        Raises:
            EngineError: The host cannot lock as much.
        """
        return PinnedBuffer(
            self._call("cudaHostAlloc", size, self._cuda.cudaHostAllocDefault, size=size), size, self._cuda
        )

    def send(self, source: NDArray[Any], target: DeviceBuffer) -> None:
        """Queues a copy to the GPU; ``source`` has to stay as it is until :meth:`wait`."""
        self._copy(target.address, source.ctypes.data, source.nbytes, "cudaMemcpyHostToDevice")

    def fetch(self, source: DeviceBuffer, target: NDArray[Any]) -> None:
        """Queues a copy from the GPU; ``target`` holds it after :meth:`wait`."""
        self._copy(target.ctypes.data, source.address, target.nbytes, "cudaMemcpyDeviceToHost")

    def wait(self) -> None:
        """Blocks until all that was queued is done.

        Raises:
            EngineError: Some of it failed.
        """
        self._call("cudaStreamSynchronize", self._stream)

    def _copy(self, target: int, source: int, size: int, direction: str) -> None:
        kind = getattr(self._cuda.cudaMemcpyKind, direction)
        self._call("cudaMemcpyAsync", target, source, size, kind, self._stream)

    def _count(self) -> int:
        status, count = self._cuda.cudaGetDeviceCount()
        errors = self._cuda.cudaError_t
        if status == errors.cudaErrorNoDevice:
            return 0
        if status == errors.cudaErrorInsufficientDriver:
            raise EngineError(driver_problem(self._cuda.cudaDriverGetVersion()[1], self._cuda.CUDART_VERSION))
        if status != errors.cudaSuccess:
            raise EngineError(f"CUDA does not start on this machine: {self._text(status)}: look at nvidia-smi")
        return int(count)

    def _call(self, name: str, *arguments: Any, size: int = 0) -> Any:
        status, *values = getattr(self._cuda, name)(*arguments)
        if status == self._cuda.cudaError_t.cudaSuccess:
            return values[0] if values else None
        if status == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            raise EngineError(self._memory_sentence(name, size))
        raise EngineError(f"GPU {self._device}: {name} failed: {self._text(status)}")

    def _memory_sentence(self, name: str, size: int) -> str:
        if name == "cudaHostAlloc":
            return f"the host cannot lock {size / _GIB:.2f} GiB of memory for GPU {self._device}: free some memory"
        status, free, total = self._cuda.cudaMemGetInfo()
        left = f"{free / _GIB:.2f} of {total / _GIB:.2f} GiB are free" if not int(status) else "it is full"
        wanted = f"{size / _GIB:.2f} GiB more are needed, but " if size else ""
        return (
            f"GPU {self._device} is out of memory: {wanted}{left}: run fewer instances or other programs on it, or "
            "export with smaller profiles"
        )

    def _text(self, status: Any) -> str:
        return str(self._cuda.cudaGetErrorString(status)[1].decode())


class DeviceBuffer:
    """Memory on a GPU.

    Attributes:
        address: Its first byte.
        size: Bytes.
    """

    def __init__(self, address: int, size: int, cuda: Any) -> None:
        self.address = int(address)
        self.size = size
        weakref.finalize(self, cuda.cudaFree, self.address)


class PinnedBuffer:
    """Page-locked memory on the host.

    Attributes:
        bytes: UINT8 [size], the memory itself.
    """

    def __init__(self, address: int, size: int, cuda: Any) -> None:
        memory = (ctypes.c_uint8 * size).from_address(int(address))
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array(memory)
        weakref.finalize(self, cuda.cudaFreeHost, int(address))


def driver_problem(driver: int, needed: int) -> str:
    """What is wrong with this machine's driver, and what to do.

    Args:
        driver: The newest CUDA that it knows, written as CUDA does: 13050 for 13.5, and 0 where there is no driver.
        needed: The CUDA that is asked for.
    """
    if driver == 0:
        return "this machine has no NVIDIA driver: serve on a machine with a GPU, or export with --runtime cpu"
    return (
        f"the NVIDIA driver knows CUDA {_version(driver)}, but {_version(needed)} is needed: update the driver, or "
        "install the packages of an older CUDA"
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
