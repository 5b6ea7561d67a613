"""What ``build-engines.sh`` asks and tells: plans enter the manifest only where they belong."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from resrank.core.names import Model
from resrank.export import plan_record
from resrank.export.manifest import Runtime, read_manifest, write_manifest
from resrank.export.plan_record import main
from support.tiny_manifest import make_manifest

GRAPH = b"a graph"
PLAN = b"ftrt" + bytes(20) + bytes([11, 4, 0, 106]) + bytes(40)
TOOK = ["--encoder-seconds", "3", "--reranker-seconds", "4.5", "--reranker-timing-cache"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    make_repository(tmp_path)
    return tmp_path


def make_repository(folder: Path, *capabilities: str, runtime: Runtime = Runtime.TENSORRT) -> None:
    manifest = make_manifest(runtime, **({"compute_capabilities": capabilities} if capabilities else {}))
    digests = {"model.onnx": hashlib.sha256(GRAPH).hexdigest()}
    models = {model: facts.model_copy(update={"onnx_sha256": digests}) for model, facts in manifest.models.items()}
    for model in (Model.ENCODER, Model.RERANKER):
        (folder / model / "1").mkdir(parents=True)
        (folder / model / "1" / "model.onnx").write_bytes(GRAPH)
    write_manifest(manifest.model_copy(update={"models": models}), folder)


def build(repository: Path, content: bytes = PLAN) -> Path:
    built = repository / "encoder" / ".build"
    built.mkdir(exist_ok=True)
    for model in ("encoder", "reranker"):
        (built / f"{model}.plan").write_bytes(content + model.encode())
    return built


def place(repository: Path, capability: str, content: bytes = PLAN) -> int:
    """Calls the command with new plans."""
    built = build(repository, content)
    return main(["place", str(repository), capability, str(built), *TOOK])


def test_plans_are_recorded_as_they_are(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(repository), "8.9"]) == 0
    assert capsys.readouterr().out == "model.plan\n"
    assert place(repository, "8.9") == 0
    models = read_manifest(repository).models
    plan = models[Model.RERANKER].plans["8.9"]
    content = (repository / "reranker" / "1" / "model.plan").read_bytes()
    assert plan.model_dump(mode="json") == {
        "file": "model.plan",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "tensorrt_flavour": "tensorrt",
        "tensorrt_version": "11.4.0.106",
        "timing_cache": True,
        "build_seconds": 4.5,
    }
    assert models[Model.ENCODER].plans["8.9"].timing_cache is False


def test_one_plan_for_whatever_gpu_is_replaced_by_another_gpus(repository: Path) -> None:
    place(repository, "8.9")
    place(repository, "9.0")
    assert set(read_manifest(repository).models[Model.ENCODER].plans) == {"9.0"}


def test_several_capabilities_are_built_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_repository(tmp_path, "8.0", "8.9")
    for capability, name in (("8.0", "model.sm80.plan"), ("8.9", "model.sm89.plan")):
        assert main(["check", str(tmp_path), capability]) == 0
        assert capsys.readouterr().out == f"{name}\n"
        assert place(tmp_path, capability) == 0
        assert (tmp_path / "reranker" / "1" / name).read_bytes() == PLAN + b"reranker"
    plans = read_manifest(tmp_path).models[Model.ENCODER].plans
    assert {capability: plan.file for capability, plan in plans.items()} == {
        "8.0": "model.sm80.plan",
        "8.9": "model.sm89.plan",
    }


def test_plans_that_another_machine_places_meanwhile_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are read for seconds for each GB: what is in the manifest by then counts."""
    make_repository(tmp_path, "8.0", "8.9")
    original, placed = plan_record.read_plan_header, []

    def slow(plan: Path) -> object:
        if not placed:
            placed.append(True)
            assert place(tmp_path, "8.9") == 0
            build(tmp_path)  # its own once more, which lay in the same folder
        return original(plan)

    monkeypatch.setattr(plan_record, "read_plan_header", slow)
    assert place(tmp_path, "8.0") == 0
    assert set(read_manifest(tmp_path).models[Model.ENCODER].plans) == {"8.0", "8.9"}


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("resrank: ")
    assert said.err.count("\n") == 1
    return said.err


def test_another_gpu_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_repository(tmp_path, "8.0", "8.9")
    said = refusal(["check", str(tmp_path), "9.0"], capsys)
    assert "wants engines for compute capability 8.0, 8.9, but this GPU has 9.0: build on such a GPU, or export" in said


def test_graphs_that_are_not_those_exported_are_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "reranker" / "1" / "model.onnx").write_bytes(b"another graph")
    said = refusal(["check", str(repository), "8.9"], capsys)
    assert f"reranker/1/model.onnx: its sha256 is {hashlib.sha256(b'another graph').hexdigest()}, but" in said
    (repository / "reranker" / "1" / "model.onnx").unlink()
    assert "reranker/1/model.onnx: is missing" in refusal(["check", str(repository), "8.9"], capsys)


def test_a_full_disk_is_refused(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(plan_record.shutil, "disk_usage", lambda _: usage(100, 90, 10))
    assert "0.0 GB are free: make room" in refusal(["check", str(repository), "8.9"], capsys)


@pytest.mark.parametrize("runtime", [Runtime.CPU, Runtime.TENSORRT_RTX, Runtime.TORCH])
def test_other_runtimes_have_nothing_to_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], runtime: Runtime
) -> None:
    make_repository(tmp_path, runtime=runtime)
    assert f"was exported for runtime {runtime.value}" in refusal(["check", str(tmp_path), "8.9"], capsys)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (
            b"vtrt" + bytes(12) + (len(PLAN) + len("encoder")).to_bytes(8, "little") + PLAN[24:],
            "the plan was built by tensorrt_rtx 11.4.0.106, but the repository needs tensorrt 11 or later",
        ),
        (PLAN[:24] + bytes([10, 13, 3, 9]) + bytes(40), "the plan was built by tensorrt 10.13.3.9, but"),
        (b"", "are no whole TensorRT plan"),
    ],
    ids=["rtx", "old", "empty"],
)
def test_what_is_not_the_repositorys_plan_is_not_recorded(
    repository: Path, capsys: pytest.CaptureFixture[str], content: bytes, named: str
) -> None:
    before = (repository / "manifest.json").read_bytes()
    assert place(repository, "8.9", content) == 1
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1
    assert (repository / "manifest.json").read_bytes() == before
    assert not (repository / "encoder" / "1" / "model.plan").exists()


def test_a_capability_that_is_none_is_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        place(repository, "[N/A]")
    assert ended.value.code == 2
    assert "'[N/A]' is no compute capability" in capsys.readouterr().err


def test_the_command_needs_no_torch() -> None:
    program = (
        "import sys; import resrank.export.plan_record\n"
        "heavy = {'torch', 'transformers', 'onnx', 'tokenizers', 'safetensors', 'tritonclient'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
