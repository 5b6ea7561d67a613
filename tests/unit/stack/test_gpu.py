from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest

from resrank.serving.engines.base import EngineKind
from resrank.stack import gpu
from resrank.stack.gpu import GpuQueryError, Machine, find_tensorrt_backend, query_gpus
from resrank.stack.triton_install import TritonInstall

# As `nvidia-smi --query-gpu=… --format=csv,noheader,nounits` prints it.
ANSWER = """\
0, GPU-b5169cef-2205-c30e-f2b3-220cfa14bafd, NVIDIA TITAN V, 570.86.15, 7.0, 12288, 11880
1, GPU-7518f6b0-991f-ce2b-3d37-c779130d3137, NVIDIA RTX 5880 Ada Generation, 570.86.15, 8.9, 49140, 1024
"""
TITAN, ADA = "NVIDIA TITAN V", "NVIDIA RTX 5880 Ada Generation"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of ``PATH``; what is written to ``nvidia-smi`` there is run."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder / "nvidia-smi"


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def answer(program: Path, text: str = ANSWER) -> None:
    write(program, f"/bin/cat <<'END'\n{text}END")


def test_each_gpu_is_read(smi: Path) -> None:
    answer(smi)
    first, second = query_gpus()
    assert (first.ordinal, first.name, first.capability, first.driver) == (0, TITAN, "7.0", "570.86.15")
    assert (second.memory_bytes, second.free_bytes) == (49140 * 1024**2, 1024**3)
    assert str(second) == f"GPU 1 ({ADA}, compute capability 8.9)"


def test_exactly_the_fields_are_asked_for(smi: Path) -> None:
    write(smi, 'echo "$@" >&2; exit 3')
    with pytest.raises(GpuQueryError) as error:
        query_gpus()
    fields = "index,uuid,name,driver_version,compute_cap,memory.total,memory.free"
    assert str(error.value) == f"nvidia-smi ended with 3: --query-gpu={fields} --format=csv,noheader,nounits"


def test_memory_that_the_host_shares_is_unknown(smi: Path) -> None:
    answer(smi, "0, GPU-1, NVIDIA GB10, 580.95.05, 12.1, [N/A], [N/A]\n")
    (found,) = query_gpus()
    assert (found.capability, found.memory_bytes, found.free_bytes) == ("12.1", None, None)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", [ADA]),
        ("1,0", [ADA, TITAN]),
        (" 0 , 1 ", [TITAN, ADA]),
        ("GPU-7518f6b0", [ADA]),
        ("", []),
        ("-1", []),
        ("0,7,1", [TITAN]),  # CUDA stops at what it does not know
        ("MIG-c7ba1b6f-2f8f-5b6c-8f5f-0d3b4d9e5a11", [TITAN]),
    ],
)
def test_only_visible_gpus_count_in_cudas_order(
    smi: Path, monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    answer(smi)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = query_gpus()
    assert [one.name for one in found] == names
    assert [one.ordinal for one in found] == list(range(len(names)))


def test_a_slice_of_a_gpu_has_not_its_memory(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(smi)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-c7ba1b6f-2f8f-5b6c-8f5f-0d3b4d9e5a11")
    assert query_gpus()[0].free_bytes is None


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2", 'ended with 2: Field "compute_cap" is'),
        ("exit 9", "ended with 9: no message"),
        ("echo '0, GPU-1, NVIDIA L4, 570.86.15'", "'0, GPU-1, NVIDIA L4, 570.86.15', which is not the 7 fields"),
        ("echo '0, GPU-1, NVIDIA L4, 570.86.15, [N/A], 1, 1'", "no compute capability"),
        ("/bin/sleep 5", "has not answered within 0.2 s"),
    ],
)
def test_what_cannot_be_understood_is_told(
    smi: Path, monkeypatch: pytest.MonkeyPatch, script: str, sentence: str
) -> None:
    monkeypatch.setattr(gpu, "_TIMEOUT_S", 0.2)
    write(smi, script)
    with pytest.raises(GpuQueryError) as error:
        query_gpus()
    assert sentence in str(error.value)


def test_a_machine_tells_why_it_has_no_gpu(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    assert machine.gpus == ()
    assert "nvidia-smi is not on PATH" in machine.gpu_problem
    answer(smi)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Machine().gpu_problem == "NVIDIA's driver shows none with CUDA_VISIBLE_DEVICES=''"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert Machine().gpu_problem == ""


def test_a_machine_asks_the_driver_once(smi: Path, tmp_path: Path) -> None:
    write(smi, f"echo asked >> {tmp_path}/asked\necho '0, GPU-1, NVIDIA L4, 570.86.15, 8.9, 23034, 22000'")
    machine = Machine()
    assert machine.gpus == machine.gpus
    assert machine.gpu_problem == ""
    assert (tmp_path / "asked").read_text() == "asked\n"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="links a library as Triton's is linked")
@pytest.mark.parametrize("file_name", ["libnvinfer.so.11.3.0", "libnvinfer.so.11"])
def test_the_backends_tensorrt_is_the_one_it_is_linked_with(tmp_path: Path, file_name: str) -> None:
    folder = tmp_path / "backends" / "tensorrt"
    folder.mkdir(parents=True)
    libraries = tmp_path / "lib"
    libraries.mkdir()
    shared = ["gcc", "-shared", "-x", "c", "/dev/null"]
    subprocess.run([*shared, "-Wl,-soname,libnvinfer.so.11", "-o", libraries / file_name], check=True)
    if file_name != "libnvinfer.so.11":
        (libraries / "libnvinfer.so.11").symlink_to(file_name)
    backend = folder / "libtriton_tensorrt.so"
    subprocess.run([*shared, "-x", "none", "-Wl,--no-as-needed", libraries / file_name, "-o", backend], check=True)
    install = TritonInstall(
        tmp_path / "bin" / "tritonserver", False, tmp_path / "backends", {"LD_LIBRARY_PATH": str(libraries)}
    )
    found = find_tensorrt_backend(install)
    assert found is not None
    assert found.folder == folder
    assert found.tensorrt == ("11.3.0" if file_name.endswith("11.3.0") else None)


def test_a_triton_without_the_backend_has_none(tmp_path: Path) -> None:
    (tmp_path / "python").mkdir()
    assert find_tensorrt_backend(TritonInstall(tmp_path / "tritonserver", False, tmp_path)) is None


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that can be imported of what engines need, whatever other tests have imported already."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder)])
    for name in ("torch", "transformers", "safetensors", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def install(site: Path, module: str, distribution: str, version: str) -> None:
    (site / module).mkdir()
    (site / module / "__init__.py").write_text("raise ImportError('importing is not looking')")
    if version:
        metadata = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("kind", "module", "distribution", "version", "found"),
    [
        (EngineKind.TORCH, "torch", "torch", "", gpu.UNKNOWN_VERSION),
        (EngineKind.TENSORRT_RTX, "tensorrt_rtx_bindings", "tensorrt-rtx-cu13-bindings", "1.7.1.116", "1.7.1.116"),
        (EngineKind.TENSORRT_RTX, "tensorrt", "tensorrt", "11.3.0.99", None),
    ],
)
def test_packages_are_found_without_being_imported(
    site: Path, kind: EngineKind, module: str, distribution: str, version: str, found: str | None
) -> None:
    install(site, module, distribution, version)
    assert Machine().package(kind) == found


def test_a_missing_companion_is_named(site: Path) -> None:
    assert Machine().missing_companions(EngineKind.TORCH) == ("transformers", "safetensors")
    install(site, "transformers", "transformers", "5.0")
    assert Machine().missing_companions(EngineKind.TORCH) == ("safetensors",)
    assert Machine().missing_companions(EngineKind.OPENVINO) == ()


@pytest.mark.parametrize(
    ("line", "found"),
    [("cuda: Optional[str] = '13.0'", "13.0"), ("cuda = '12.8'", "12.8"), ("cuda: Optional[str] = None", None)],
)
def test_torchs_cuda_is_read_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, found: str | None
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip: Optional[str] = None\n")
    spec = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(gpu, "find_spec", lambda module: spec)
    assert Machine().torch_cuda == found


def test_torchs_cuda_is_what_torch_says() -> None:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        pytest.skip("the extra 'export' is not installed")
    facts = runpy.run_path(str(Path(spec.origin).with_name("version.py")))  # importing torch takes seconds
    assert Machine().torch_cuda == facts["cuda"]


def test_bf16_is_what_openvino_says() -> None:
    openvino = pytest.importorskip("openvino", reason="the extra 'cpu' is not installed")
    assert Machine().cpu_bf16 == ("BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
