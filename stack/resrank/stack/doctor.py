"""Looks at a machine and says what it lacks for serving ResRank, and what to do about it."""

from __future__ import annotations

import platform
import shutil
import sqlite3
import sys
from collections.abc import Iterable
from contextlib import closing
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from resrank.core.errors import ResRankError, StackError
from resrank.core.extras import install_command
from resrank.core.limits import MAX_GRPC_MESSAGE_BYTES
from resrank.export.manifest import read_manifest
from resrank.serving.engines.base import EngineKind
from resrank.stack.check import Check, Status
from resrank.stack.gpu import Machine
from resrank.stack.ports import is_free
from resrank.stack.repository_check import check_repository, runs_on_cpu
from resrank.stack.running_sidecar import RunningSidecar
from resrank.stack.triton_install import (
    LIBPYTHON_REMEDY,
    find_libpython,
    find_triton,
    has_installed_triton,
    is_loadable,
    libpython_name,
)

_MIN_GLIBC = (2, 35)
"""The embedded Triton's wheel is tagged ``manylinux_2_35``."""

_MIN_SHARED_MEMORY = MAX_GRPC_MESSAGE_BYTES
"""The Python backend moves tensors through /dev/shm, so the largest message must fit; what waits for an engine takes
64 MiB at most. Docker gives 64 MB in all."""


def examine(
    host: str, ports: Iterable[int], repository: Path | None = None, sidecar: RunningSidecar | None = None
) -> list[Check]:
    """Runs all checks, the needed ones and the informational ones.

    Args:
        host: Address that the stack would listen on.
        ports: The ports it would use.
        repository: A model repository to compare with the machine, its files' digests included.
        sidecar: One that runs already and is to be joined, in place of one to be started.

    Returns:
        The checks in the order of the report, the repository's last.
    """
    machine = Machine()
    return [
        check_python(),
        check_libpython(),
        check_glibc(),
        check_numpy(),
        check_triton(),
        check_engines(needed=repository is None or runs_on_cpu(repository)),
        *((check_faiss(), check_fts5()) if sidecar is None else (check_sidecar(sidecar, repository),)),
        *(check_port(host, port) for port in ports),
        check_shared_memory(),
        check_gpu(machine),
        check_gpu_engines(machine),
        *([] if repository is None else check_repository(repository, machine)),
    ]


def check_python() -> Check:
    """The embedded Triton's stub and NumPy 1.26 exist for Python 3.11 and 3.12; the rest runs on 3.13 too."""
    detail = f"{platform.python_version()} at {sys.executable}"
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("Python", Status.FAILED, detail, "use Python 3.11 or 3.12 (3.13 for the client alone)")
    return Check("Python", Status.OK, detail)


def check_libpython() -> Check:
    """The embedded Triton's Python backend loads the interpreter as a shared library."""
    library = find_libpython()
    if library is None:
        return Check("libpython", Status.FAILED, f"{libpython_name()} not found", LIBPYTHON_REMEDY)
    if not is_loadable(library):
        return Check("libpython", Status.FAILED, f"{library} cannot be loaded", LIBPYTHON_REMEDY)
    return Check("libpython", Status.OK, str(library))


def check_glibc() -> Check:
    """The C library is new enough for the embedded Triton."""
    name, found = platform.libc_ver()
    if name != "glibc":
        return Check(
            "glibc", Status.FAILED, "this system has another C library", "use a distribution with glibc ≥ 2.35"
        )
    if tuple(int(part) for part in found.split(".")[:2]) < _MIN_GLIBC:
        return Check(
            "glibc", Status.FAILED, found, "use Ubuntu 22.04, Debian 12 or newer: the embedded Triton needs 2.35"
        )
    return Check("glibc", Status.OK, found)


def check_numpy() -> Check:
    """NumPy 2 makes the embedded Triton's Python models answer with empty outputs, without an error."""
    try:
        found = version("numpy")
    except PackageNotFoundError:
        return Check("NumPy", Status.FAILED, "not installed", "pip install 'numpy>=1.26,<2'")
    if not found.startswith("1.") and not has_installed_triton():
        return Check(
            "NumPy",
            Status.FAILED,
            f"{found}: the embedded Triton's Python models return nothing with NumPy 2",
            "pip install 'numpy>=1.26,<2'",
        )
    return Check("NumPy", Status.OK, found)


def check_triton() -> Check:
    """A server that can be started."""
    try:
        triton = find_triton()
    except StackError as error:
        problem, _, remedy = str(error).partition(": ")
        return Check("Triton", Status.FAILED, problem, remedy)
    origin = "embedded in nvidia-pytriton" if triton.embedded else "installed"
    return Check("Triton", Status.OK, f"{triton.version() or 'unknown version'}, {origin}, {triton.executable}")


def check_engines(*, needed: bool) -> Check:
    """At least one runtime for the CPU flavour of the engines.

    Args:
        needed: Whether it is a failure when there is none.
    """
    found, broken = [], []
    for title, module in (("OpenVINO", "openvino"), ("ONNX Runtime", "onnxruntime")):
        try:
            import_module(module)
        except ModuleNotFoundError:
            continue
        except ImportError as error:
            broken.append(f"{title} cannot be loaded ({error})")
        else:
            found.append(f"{title} {version(module)}")
    detail = ", ".join([*found, *broken]) or "none installed"
    if not found:
        if not needed:
            return Check("CPU engines", Status.ABSENT, f"{detail}: this repository needs none")
        return Check("CPU engines", Status.FAILED, detail, install_command("cpu"))
    return Check("CPU engines", Status.OK, detail)


def check_faiss() -> Check:
    """The sidecar's dense index, as the CPU or as the GPU build."""
    try:
        faiss = import_module("faiss")
    except ImportError as error:
        return Check("FAISS", Status.FAILED, str(error), install_command("retrieval"))
    return Check("FAISS", Status.OK, str(faiss.__version__))


def check_fts5() -> Check:
    """SQLite's full-text index is the sidecar's lexical search."""
    with closing(sqlite3.connect(":memory:")) as database:
        try:
            database.execute("CREATE VIRTUAL TABLE probe USING fts5(text)")
        except sqlite3.OperationalError:
            return Check(
                "SQLite FTS5",
                Status.FAILED,
                f"SQLite {sqlite3.sqlite_version} was built without it",
                "use a Python whose SQLite has FTS5 (python.org's, your distribution's, or uv's)",
            )
    return Check("SQLite FTS5", Status.OK, f"SQLite {sqlite3.sqlite_version}")


def check_sidecar(sidecar: RunningSidecar, repository: Path | None) -> Check:
    """Whether a sidecar answers, and has a collection for a repository."""
    name = "retrieval sidecar"
    try:
        collections = len(sidecar.encoders())
        if repository is not None:
            sidecar.require_place_for(read_manifest(repository).checkpoint.encoder_sha256)
    except ResRankError as error:
        problem, _, remedy = str(error).rpartition(": ")
        return Check(name, Status.FAILED, problem, remedy)
    return Check(name, Status.OK, f"answers at {sidecar.address}, {collections} collections")


def check_port(host: str, port: int) -> Check:
    """Whether a server could listen there now."""
    if is_free(host, port):
        return Check(f"port {port}", Status.OK, f"free on {host}")
    return Check(
        f"port {port}",
        Status.FAILED,
        f"in use on {host}",
        "stop what listens there, or choose another: resrank serve --help lists the options",
    )


def check_shared_memory() -> Check:
    """Triton and its Python models exchange tensors through /dev/shm."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError as error:
        return Check("/dev/shm", Status.FAILED, str(error), "mount a tmpfs at /dev/shm")
    detail = f"{free / 2**20:.0f} MiB free"
    if free < _MIN_SHARED_MEMORY:
        return Check(
            "/dev/shm",
            Status.FAILED,
            detail,
            f"make it {_MIN_SHARED_MEMORY // 2**20} MiB or more: "
            "docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm",
        )
    return Check("/dev/shm", Status.OK, detail)


def check_gpu(machine: Machine) -> Check:
    """Informational: the GPUs that NVIDIA's driver shows."""
    if not machine.gpus:
        return Check("GPU", Status.ABSENT, f"none ({machine.gpu_problem}): engines run on the CPU")
    return Check("GPU", Status.OK, "; ".join(f"{gpu}, driver {gpu.driver}" for gpu in machine.gpus))


def check_gpu_engines(machine: Machine) -> Check:
    """Informational: what builds and runs engines for GPUs, as packages and inside Triton."""
    found = []
    if (rtx := machine.package(EngineKind.TENSORRT_RTX)) is not None:
        found.append(f"TensorRT for RTX {rtx}")
    if machine.torch_cuda is not None:
        found.append(f"torch {machine.package(EngineKind.TORCH)} with CUDA {machine.torch_cuda}")
    backend = machine.tensorrt_backend
    if backend is not None:
        found.append(f"Triton's tensorrt backend with TensorRT {backend.tensorrt or 'of an unknown version'}")
    if not found:
        return Check(
            "GPU engines", Status.ABSENT, "none installed: only needed to export for GPUs and to serve on them"
        )
    return Check("GPU engines", Status.OK, ", ".join(found))
