from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resrank.core.errors import StackError
from resrank.stack import triton_install
from resrank.stack.triton_install import find_libpython, find_triton, is_loadable

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(triton_install, "SYSTEM_TRITON", tmp_path / "opt" / "bin" / "tritonserver")


@pytest.fixture
def wheel() -> Path:
    pytriton = pytest.importorskip("pytriton", reason="the embedded Triton exists for Python 3.11 and 3.12")
    return Path(pytriton.__file__).parent / "tritonserver"


def test_path_comes_first_then_opt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    system = program(triton_install.SYSTEM_TRITON)
    assert find_triton().executable == system
    on_path = program(tmp_path / "bin" / "tritonserver")
    monkeypatch.setenv("PATH", str(on_path.parent))
    found = find_triton()
    assert found.executable == on_path
    assert not found.embedded
    assert found.environment == {}
    assert found.backend_directory is None
    assert found.backends == Path("/opt/tritonserver/backends")


def test_the_version_of_an_installed_server_is_read(tmp_path: Path) -> None:
    program(triton_install.SYSTEM_TRITON)
    (tmp_path / "opt" / "TRITON_VERSION").write_text("2.70.0\n")
    assert find_triton().version() == "2.70.0"


def test_the_wheel_is_prepared_for_this_python(wheel: Path) -> None:
    found = find_triton()
    assert found.embedded
    assert found.version() == "2.51.0"
    assert found.backend_directory is not None
    assert found.backends == found.backend_directory
    backend = found.backend_directory / "python"
    stub = wheel / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    assert (backend / "triton_python_backend_stub").read_bytes() == stub.read_bytes()
    assert (backend / "libtriton_python.so").is_file()
    libpython = find_libpython()
    assert libpython is not None
    assert is_loadable(libpython)
    libraries = found.environment["LD_LIBRARY_PATH"].split(":")
    assert libraries[:2] == [str(wheel.parent.parent / "nvidia_pytriton.libs"), str(libpython.parent)]
    assert found.environment["PATH"].startswith(f"{sys.prefix}/bin:")
    assert found.environment["VIRTUAL_ENV"] == sys.prefix


def test_servers_that_start_together_share_one_complete_copy(wheel: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = {found.backend_directory for found in pool.map(lambda _: find_triton(), range(8))}
    assert len(folders) == 1
    assert list((tmp_path / "cache" / "resrank").iterdir()) == list(folders)


def test_a_cache_that_cannot_be_written_is_an_error(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(StackError, match="XDG_CACHE_HOME"):
        find_triton()


def test_numpy_2_is_refused_because_outputs_would_be_empty(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_install, "version", lambda package: "2.3.5")
    with pytest.raises(StackError, match=r"empty outputs with NumPy 2 \(installed: 2\.3\.5\)"):
        find_triton()


def test_a_python_without_libpython_is_refused(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_install, "find_libpython", lambda: None)
    with pytest.raises(StackError, match=rf"libpython{PYTHON}\.so\.1\.0 is missing"):
        find_triton()


def test_no_server_at_all_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_install, "find_spec", lambda name: None)
    with pytest.raises(StackError, match=r"\[server\]'? \(Python 3\.11"):
        find_triton()


def test_a_file_that_is_no_library_is_not_loadable(tmp_path: Path) -> None:
    (tmp_path / "libpython.so").write_text("no ELF")
    assert not is_loadable(tmp_path / "libpython.so")
