from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from resrank.core.errors import StackError
from resrank.export.manifest import Runtime
from resrank.serving.engines.base import EngineKind
from resrank.stack import doctor
from resrank.stack.check import Check, Status
from resrank.stack.cli.app import run
from resrank.stack.gpu import Gpu, Machine, TensorRtBackend
from resrank.stack.ports import choose_ports
from resrank.stack.repository_check import check_repository
from support.tiny_manifest import write_tiny_manifest


def options() -> list[str]:
    ports = choose_ports("127.0.0.1", None, None, None, None)
    names = ("--triton-port", "--metrics-port", "--retrieval-port", "--retrieval-metrics-port")
    return [word for name, port in zip(names, ports, strict=True) for word in (name, str(port))]


def fine(check: str, *_: object, **__: object) -> Check | list[Check]:
    found = Check(check, Status.OK, "fine")
    return [found] if check == "check_repository" else found


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which only the ports are looked at."""
    for name in [name for name in vars(doctor) if name.startswith("check_") and name != "check_port"]:
        monkeypatch.setattr(doctor, name, partial(fine, name))


@pytest.mark.usefixtures("healthy")
def test_a_healthy_machine_gets_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", *options()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("✓ ") for line in lines)
    assert any("free on 127.0.0.1" in line for line in lines)


@pytest.mark.usefixtures("healthy")
def test_a_taken_port_gets_one_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["doctor", *options()[2:], "--triton-port", str(port)]) == 1
        told = capsys.readouterr().out
        assert f"✗ port {port}: in use on 127.0.0.1\n    stop what listens there" in told
        assert run(["doctor", *options()[2:], "--triton-port", str(port), "--output", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    (failed,) = [check for check in report["checks"] if check["status"] == "failed"]
    assert failed["name"] == f"port {port}"
    assert failed["remedy"]


@pytest.mark.parametrize(("embedded", "status"), [(True, Status.FAILED), (False, Status.OK)])
def test_numpy_2_fails_only_with_the_embedded_triton(
    monkeypatch: pytest.MonkeyPatch, embedded: bool, status: Status
) -> None:
    monkeypatch.setattr(doctor, "version", lambda package: "2.3.5")
    monkeypatch.setattr(doctor, "has_installed_triton", lambda: not embedded)
    assert doctor.check_numpy().status is status


def test_a_missing_triton_splits_into_problem_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise StackError("no tritonserver found: pip install 'resrank[server]'")

    monkeypatch.setattr(doctor, "find_triton", missing)
    check = doctor.check_triton()
    assert (check.status, check.detail) == (Status.FAILED, "no tritonserver found")
    assert check.remedy == "pip install 'resrank[server]'"


@pytest.mark.parametrize(("mebibytes", "status"), [(64, Status.FAILED), (255, Status.FAILED), (256, Status.OK)])
def test_shared_memory_must_hold_the_largest_message(
    monkeypatch: pytest.MonkeyPatch, mebibytes: int, status: Status
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=mebibytes * 2**20))
    assert doctor.check_shared_memory().status is status


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (("glibc", "2.34"), Status.FAILED),
        (("glibc", "2.35"), Status.OK),
        (("glibc", "2.4"), Status.FAILED),
        (("", ""), Status.FAILED),
    ],
)
def test_glibc_versions_compare_as_numbers(
    monkeypatch: pytest.MonkeyPatch, found: tuple[str, str], status: Status
) -> None:
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: found)
    assert doctor.check_glibc().status is status


def test_a_broken_engine_is_not_taken_for_a_working_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: str) -> None:
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "import_module", broken)
    check = doctor.check_engines(needed=True)
    assert check.status is Status.FAILED
    assert "libgomp.so.1" in check.detail
    assert doctor.check_engines(needed=False).status is Status.ABSENT


@dataclass
class GpuServer(Machine):
    gpus: tuple[Gpu, ...] = (Gpu(0, "GPU-1", "NVIDIA L4", "580.95.05", "8.9", 22 << 30, 20 << 30),)
    gpu_problem: str = ""
    torch_cuda: str | None = "13.0"
    tensorrt_backend: TensorRtBackend | None = None

    def package(self, kind: EngineKind) -> str | None:
        return {EngineKind.TENSORRT_RTX: "1.7.1.116", EngineKind.TORCH: "2.13.0"}.get(kind)


def test_gpus_and_what_runs_on_them_are_told() -> None:
    machine = GpuServer()
    assert doctor.check_gpu(machine).detail == "GPU 0 (NVIDIA L4, compute capability 8.9), driver 580.95.05"
    assert doctor.check_gpu_engines(machine).detail == "TensorRT for RTX 1.7.1.116, torch 2.13.0 with CUDA 13.0"
    machine.tensorrt_backend = TensorRtBackend(Path("/opt/tritonserver/backends/tensorrt"), "11.3.0")
    assert doctor.check_gpu_engines(machine).detail.endswith(", Triton's tensorrt backend with TensorRT 11.3.0")


def test_a_missing_gpu_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    check = doctor.check_gpu(Machine())
    assert check.status is Status.ABSENT
    assert "nvidia-smi is not on PATH" in check.detail


@pytest.mark.usefixtures("healthy")
def test_a_repository_that_cannot_be_served_here_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "check_repository", check_repository)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    write_tiny_manifest(tmp_path, runtime=Runtime.TENSORRT)
    assert run(["doctor", str(tmp_path), *options()]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("✗")]
    assert [line.split(":")[0] for line in failed] == ["✗ encoder", "✗ reranker"]
    assert all("there is no GPU here (nvidia-smi is not on PATH" in line for line in failed)
    assert run(["doctor", str(tmp_path), *options(), "--output", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in report["checks"] if check["status"] == "failed"] == ["encoder", "reranker"]


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize(("runtime", "needed"), [(Runtime.CPU, True), (Runtime.TENSORRT, False)])
def test_only_repositories_for_cpus_need_cpu_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Runtime, needed: bool
) -> None:
    asked = []
    monkeypatch.setattr(doctor, "check_engines", lambda needed: asked.append(needed) or fine("CPU engines"))
    write_tiny_manifest(tmp_path, runtime=runtime)
    run(["doctor", str(tmp_path), *options()])
    run(["doctor", *options()])
    assert asked == [needed, True]


def test_sqlite_without_full_text_search_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutFts5:
        def execute(self, statement: str) -> None:
            raise sqlite3.OperationalError("no such module: fts5")

        def close(self) -> None: ...

    monkeypatch.setattr(doctor.sqlite3, "connect", lambda name: WithoutFts5())
    assert doctor.check_fts5().status is Status.FAILED


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10), Status.FAILED), ((3, 12), Status.OK), ((3, 14), Status.FAILED)]
)
def test_python_versions(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], status: Status) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    assert doctor.check_python().status is status
