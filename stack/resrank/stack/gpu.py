"""What this machine has for engines: GPUs, the packages that run engines, and Triton with its TensorRT backend."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from resrank.core.cpu import has_vnni
from resrank.core.errors import StackError
from resrank.core.telemetry import no_telemetry
from resrank.serving.engines.base import EngineKind
from resrank.stack.triton_install import TritonInstall, find_triton

_TIMEOUT_S = 20
"""For ``nvidia-smi`` and ``ldd``. Without persistence mode the driver is loaded first, which takes seconds."""

_FIELDS = ("index", "uuid", "name", "driver_version", "compute_cap", "memory.total", "memory.free")

UNKNOWN_VERSION = "unknown version"


class GpuQueryError(StackError):
    """``nvidia-smi`` is missing, failed, or said what cannot be understood; the message tells which."""


@dataclass(frozen=True)
class Gpu:
    """One GPU that CUDA programs started from here would see.

    Attributes:
        ordinal: CUDA's number for it, in the order of the PCI bus (``CUDA_DEVICE_ORDER``).
        uuid: NVIDIA's identifier.
        name: NVIDIA's product name.
        driver: The driver's version.
        capability: Compute capability, for instance ``8.9``.
        memory_bytes: All of its memory; None where it has none of its own or tells none.
        free_bytes: What of it is free now; None likewise.
    """

    ordinal: int
    uuid: str
    name: str
    driver: str
    capability: str
    memory_bytes: int | None
    free_bytes: int | None

    def __str__(self) -> str:
        return f"GPU {self.ordinal} ({self.name}, compute capability {self.capability})"


def query_gpus() -> tuple[Gpu, ...]:
    """Asks NVIDIA's driver which GPUs there are, and keeps those that ``CUDA_VISIBLE_DEVICES`` leaves visible.

    Raises:
        GpuQueryError: There is no driver, or it cannot be asked.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        raise GpuQueryError("nvidia-smi is not on PATH, so NVIDIA's driver is not installed")
    query = [program, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise GpuQueryError(f"nvidia-smi has not answered within {_TIMEOUT_S} s") from None
    except OSError as error:
        raise GpuQueryError(f"nvidia-smi cannot be run: {error}") from error
    if answer.returncode != 0:  # drivers before 510 do not know compute_cap, for instance
        said = " ".join((answer.stdout + answer.stderr).split())
        raise GpuQueryError(f"nvidia-smi ended with {answer.returncode}: {said or 'no message'}")
    return _visible(tuple(_parse(row) for row in csv.reader(answer.stdout.splitlines(), skipinitialspace=True) if row))


def _parse(row: list[str]) -> Gpu:
    if len(row) != len(_FIELDS):
        raise GpuQueryError(f"nvidia-smi said {', '.join(row)!r}, which is not the {len(_FIELDS)} fields asked for")
    index, uuid, name, driver, capability, memory, free = (field.strip() for field in row)
    if not index.isdecimal() or not re.fullmatch(r"\d+\.\d", capability):
        raise GpuQueryError(f"nvidia-smi said {', '.join(row)!r}, which has no index or no compute capability")
    return Gpu(int(index), uuid, name, driver, capability, _mebibytes(memory), _mebibytes(free))


def _mebibytes(text: str) -> int | None:
    return int(text) * 2**20 if text.isdecimal() else None  # "[N/A]" where the GPU shares the host's memory


def _visible(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """Those that CUDA would show, renumbered, by its rules: it stops at the first entry that names none."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None or not gpus:
        return gpus
    chosen: list[Gpu] = []
    for entry in (entry.strip() for entry in wanted.split(",")):
        if entry.startswith("MIG-"):
            # A slice of some GPU here: its capability, but not its memory. CUDA shows a process one slice at most.
            return (replace(gpus[0], ordinal=0, memory_bytes=None, free_bytes=None),)
        named = [
            gpu for gpu in gpus if entry == str(gpu.ordinal) or (entry[:4] == "GPU-" and gpu.uuid.startswith(entry))
        ]
        if not named:
            break
        chosen.append(replace(named[0], ordinal=len(chosen)))
    return tuple(chosen)


@dataclass(frozen=True)
class TensorRtBackend:
    """Triton's own TensorRT backend.

    Attributes:
        folder: Where it is.
        tensorrt: Version of the TensorRT library that it is linked with: major, minor and patch, as in the library's
            file name; None where that cannot be told.
    """

    folder: Path
    tensorrt: str | None


def find_tensorrt_backend(triton: TritonInstall) -> TensorRtBackend | None:
    """Looks for the TensorRT backend of a Triton; nothing is loaded."""
    folder = triton.backends / "tensorrt"
    library = folder / "libtriton_tensorrt.so"
    return TensorRtBackend(folder, _linked_tensorrt(library, triton)) if library.is_file() else None


def _linked_tensorrt(library: Path, triton: TritonInstall) -> str | None:
    environment = {**os.environ, **triton.environment}
    try:
        told = subprocess.run(
            ["ldd", library], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True, env=environment
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    linked = re.search(r"libnvinfer\.so\S* => (/\S+)", told)
    if linked is None:
        return None
    # libnvinfer.so.11 is a link to libnvinfer.so.11.3.0
    name = re.search(r"libnvinfer\.so\.(\d+\.\d+\.\d+)", Path(linked[1]).resolve().name)
    return None if name is None else name[1]


_PACKAGES: dict[EngineKind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    EngineKind.OPENVINO: (("openvino",), ("openvino",)),
    EngineKind.ONNXRUNTIME: (("onnxruntime",), ("onnxruntime", "onnxruntime-gpu")),
    EngineKind.TENSORRT_RTX: (
        ("tensorrt_rtx", "tensorrt_rtx_bindings"),
        ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings"),
    ),
    EngineKind.TORCH: (("torch",), ("torch",)),
}
"""Engine to import names and to distribution names. Of TensorRT-RTX only the bindings and libraries are wheels."""


def installed_version(kind: EngineKind) -> str | None:
    """Version of the package that runs an engine, by its metadata: importing one takes seconds.

    Returns:
        The version, :data:`UNKNOWN_VERSION` when the package has no metadata, None when it is not installed.
    """
    modules, distributions = _PACKAGES[kind]
    if not any(find_spec(module) for module in modules):
        return None
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return UNKNOWN_VERSION


_COMPANIONS: dict[EngineKind, dict[str, str]] = {
    EngineKind.TORCH: {"transformers": "transformers", "safetensors": "safetensors"},
}
"""Engine to what it imports beside its own package, with the distribution's name."""


def missing_companions(kind: EngineKind) -> tuple[str, ...]:
    """Distributions that an engine needs beside its own package and that are not installed."""
    return tuple(name for module, name in _COMPANIONS.get(kind, {}).items() if find_spec(module) is None)


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built with, or None: no torch, or a CPU build of it."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return None
    try:
        facts = Path(torch.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    cuda = re.search(r"^cuda\b[^=\n]*= *'([\d.]+)'", facts, re.MULTILINE)
    return None if cuda is None else cuda[1]


def _cpu_features() -> set[str]:
    """Of the first processor: the kernel measures a frequency for each that is read, which takes its time."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next((set(line.split()) for line in lines if line.startswith("flags")), set())
    except OSError:
        return set()


def cpu_has_bf16() -> bool:
    """Whether OpenVINO multiplies in bf16 on this CPU.

    The kernel's list of CPU features answers at once where it can; else OpenVINO itself is asked, since it also counts
    CPUs on which it emulates bf16.
    """
    if _cpu_features() & {"avx512_bf16", "amx_bf16"}:
        return True
    no_telemetry()
    try:
        import openvino
    except ImportError:
        return False
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Machine:
    """This machine. Each fact is found when it is first asked for: a repository for CPUs never waits for a driver."""

    @cached_property
    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs; empty when there are none or they cannot be told."""
        return self._survey[0]

    @cached_property
    def gpu_problem(self) -> str:
        """Why :attr:`gpus` is empty; empty text when it is not."""
        return self._survey[1]

    @cached_property
    def _survey(self) -> tuple[tuple[Gpu, ...], str]:
        try:
            gpus = query_gpus()
        except GpuQueryError as error:
            return (), str(error)
        if gpus:
            return gpus, ""
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return (), "NVIDIA's driver shows none" + ("" if hidden is None else f" with CUDA_VISIBLE_DEVICES={hidden!r}")

    def package(self, kind: EngineKind) -> str | None:
        """See :func:`installed_version`."""
        return installed_version(kind)

    def missing_companions(self, kind: EngineKind) -> tuple[str, ...]:
        """See :func:`missing_companions`."""
        return missing_companions(kind)

    @cached_property
    def torch_cuda(self) -> str | None:
        """See :func:`torch_cuda`."""
        return torch_cuda()

    @cached_property
    def cpu_bf16(self) -> bool:
        """See :func:`cpu_has_bf16`."""
        return cpu_has_bf16()

    @cached_property
    def cpu_vnni(self) -> bool:
        """See :func:`resrank.core.cpu.has_vnni`."""
        return has_vnni()

    @cached_property
    def triton(self) -> TritonInstall | None:
        """The server that would be started; None when there is none that can be."""
        try:
            return find_triton()
        except StackError:
            return None

    @cached_property
    def tensorrt_backend(self) -> TensorRtBackend | None:
        """That server's TensorRT backend."""
        return None if self.triton is None else find_tensorrt_backend(self.triton)
