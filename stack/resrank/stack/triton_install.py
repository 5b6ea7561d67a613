"""Where Triton is: an installed ``tritonserver``, or the one inside the ``nvidia-pytriton`` wheel made ready to run."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from resrank.core.errors import StackError
from resrank.core.extras import install_command

SYSTEM_TRITON = Path("/opt/tritonserver/bin/tritonserver")
"""Where NVIDIA's container image keeps the server."""

SYSTEM_BACKENDS = Path("/opt/tritonserver/backends")
"""Where a server looks for backends when it is not told (``--backend-directory`` in its ``--help``)."""

LIBPYTHON_REMEDY = (
    "use a Python built with --enable-shared (Debian and Ubuntu: apt install libpython3.x; "
    "pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared; or uv's own Python)"
)

_WHEEL_TRITON_VERSION = {"0.7.0": "2.51.0"}
"""``nvidia-pytriton`` release to the release of the ``tritonserver`` in it (its own log says so at start)."""


@dataclass(frozen=True)
class TritonInstall:
    """A ``tritonserver`` that can be started.

    Attributes:
        executable: The program.
        embedded: Whether it is the one of the ``nvidia-pytriton`` wheel.
        backend_directory: Folder for ``--backend-directory``; None leaves the server's own.
        environment: Variables to set on top of the caller's environment.
    """

    executable: Path
    embedded: bool
    backend_directory: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def backends(self) -> Path:
        """The folder in which the server looks for its backends."""
        return SYSTEM_BACKENDS if self.backend_directory is None else self.backend_directory

    def version(self) -> str | None:
        """The server's version, or None when it cannot be told without starting a server."""
        if self.embedded:
            return _WHEEL_TRITON_VERSION.get(version("nvidia-pytriton"))
        version_file = self.executable.parent.parent / "TRITON_VERSION"
        if version_file.is_file():
            return version_file.read_text().strip()
        return os.environ.get("TRITON_SERVER_VERSION")


def find_triton() -> TritonInstall:
    """Finds the server to run: on ``PATH``, then in ``/opt/tritonserver``, then in the wheel.

    Returns:
        The install; for the wheel's, its backends are prepared for the running Python first.

    Raises:
        StackError: There is none, or the wheel's cannot work with this Python or this NumPy.
    """
    executable = _installed_triton()
    return _embedded_triton() if executable is None else TritonInstall(executable, embedded=False)


def has_installed_triton() -> bool:
    """Whether this machine has a ``tritonserver`` of its own, so that the wheel's would not be used."""
    return _installed_triton() is not None


def _installed_triton() -> Path | None:
    on_path = shutil.which("tritonserver")
    if on_path is not None:
        return Path(on_path)
    return SYSTEM_TRITON if os.access(SYSTEM_TRITON, os.X_OK) else None


def libpython_name() -> str:
    """The shared library that the Python backend's stub is linked against, for instance ``libpython3.11.so.1.0``."""
    return f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"


def find_libpython() -> Path | None:
    """The running interpreter's shared library, or None when it was built or installed without one.

    Distributions put it in a multi-arch folder, relocatable builds under their own prefix.
    """
    name = libpython_name()
    folders = [sysconfig.get_config_var("LIBDIR"), os.path.join(sys.base_prefix, "lib")]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch:
        folders += [os.path.join(folder, multiarch) for folder in folders if folder]
    for folder in folders:
        if folder and (path := Path(folder, name)).is_file():
            return path
    return None


def is_loadable(library: Path) -> bool:
    """Whether the dynamic loader accepts the library."""
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


def _embedded_triton() -> TritonInstall:
    package = find_spec("pytriton")
    if package is None or package.origin is None:
        raise StackError(
            "no tritonserver found on PATH, in /opt/tritonserver or in this environment: "
            f"{install_command('server')} (Python 3.11 or 3.12), or run inside NVIDIA's Triton container"
        )
    root = Path(package.origin).parent / "tritonserver"
    executable = root / "bin" / "tritonserver"
    if not executable.is_file():
        raise StackError(
            f"{executable} is missing: reinstall with pip install --force-reinstall nvidia-pytriton==0.7.0"
        )
    _require_old_numpy()
    libpython = find_libpython()
    if libpython is None or not is_loadable(libpython):
        raise StackError(f"{libpython_name()} is missing, which Triton's Python backend loads: {LIBPYTHON_REMEDY}")
    wheel_libraries = root.parent.parent / "nvidia_pytriton.libs"
    bin_folder = Path(sys.prefix) / "bin"
    environment = {
        "LD_LIBRARY_PATH": _prepend("LD_LIBRARY_PATH", wheel_libraries, libpython.parent),
        # Stubs for 3.11 and later ignore PYTHONPATH; they find the environment as its own python would.
        "PATH": _prepend("PATH", bin_folder),
        "VIRTUAL_ENV": sys.prefix,
    }
    return TritonInstall(executable, True, _prepare_backends(root), environment)


def _require_old_numpy() -> None:
    try:
        numpy_version = version("numpy")
    except PackageNotFoundError:
        numpy_version = "none"
    if not re.match(r"1\.", numpy_version):
        raise StackError(
            f"the embedded Triton's Python backend returns empty outputs with NumPy 2 (installed: {numpy_version}): "
            "pip install 'numpy<2' on Python 3.11 or 3.12"
        )


def _prepend(variable: str, *folders: Path) -> str:
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get(variable)])])


def _prepare_backends(root: Path) -> Path:
    """Copies the wheel's backends beside the stub of the running Python, once per environment.

    Several servers may start at the same moment: each copies to a folder of its own and renames it into place, and
    whoever comes second uses what is there.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.is_file():
        raise StackError(f"the embedded Triton has no Python backend for Python {python}: use Python 3.11 or 3.12")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resrank"
    source = root / "backends"
    target = cache / f"triton-backends-{version('nvidia-pytriton')}-py{python}"
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="triton-backends-", dir=cache) as scratch:
            copy = Path(scratch) / "backends"
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(stub, copy / "python" / stub.name)
            try:
                copy.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    except OSError as error:
        raise StackError(
            f"Triton's backends could not be copied to {target}: {error}; set XDG_CACHE_HOME to a writable folder"
        ) from error
    return target
