from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from resrank.core.checkpoint import read_spec
from resrank.core.errors import StackError
from resrank.core.extras import install_command
from resrank.core.names import CHECKPOINT_DIR, Model
from resrank.export.manifest import CheckpointFacts, Manifest, Runtime, read_manifest, write_manifest
from resrank.serving.engines.base import EngineKind, Precision
from resrank.stack.check import Status
from resrank.stack.gpu import Gpu, Machine, TensorRtBackend
from resrank.stack.refusal import Refusal
from resrank.stack.repository_check import check_repository, require_servable
from resrank.stack.triton_install import TritonInstall
from support.tiny_manifest import make_manifest, make_plan_facts, with_plans

GRAPH, PLAN = b"an exported graph", b"a plan" * 1000
DOCS = Path(__file__).parents[3] / "docs" / "gpu.md"


def gpu(ordinal: int = 0, capability: str = "8.9", free: int | None = 20 << 30) -> Gpu:
    return Gpu(ordinal, f"GPU-{ordinal}", "NVIDIA L4", "580.95.05", capability, 22 << 30, free)


TRITON = TritonInstall(Path("/opt/tritonserver/bin/tritonserver"), embedded=False)
BACKEND = TensorRtBackend(Path("/opt/tritonserver/backends/tensorrt"), "11.3.0")


@dataclass
class FakeMachine(Machine):
    """A GPU server in NVIDIA's container, but for what a test changes."""

    gpus: tuple[Gpu, ...] = (gpu(),)
    gpu_problem: str = ""
    packages: dict[EngineKind, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    torch_cuda: str | None = "13.0"
    cpu_bf16: bool = True
    cpu_vnni: bool = True
    triton: TritonInstall | None = TRITON
    tensorrt_backend: TensorRtBackend | None = BACKEND

    def package(self, kind: EngineKind) -> str | None:
        return self.packages.get(kind)

    def missing_companions(self, kind: EngineKind) -> tuple[str, ...]:
        return self.missing


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repository:
    """A model repository with its engines' files and nothing else."""

    root: Path
    manifest: Manifest

    def file(self, model: Model, name: str) -> Path:
        return self.root / model / "1" / name


Make = Callable[..., Repository]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make_repository(
        runtime: Runtime,
        *,
        plans: tuple[str, ...] = (),
        precision: Precision | None = None,
        version: str = "11.3.0.99",
        engine: EngineKind | None = None,
        **fields: object,
    ) -> Repository:
        manifest = make_manifest(runtime, **fields)
        flavour = manifest.models[Model.ENCODER].engine
        built = {
            capability: make_plan_facts(
                flavour,
                file=f"model.sm{capability.replace('.', '')}.plan",
                sha256=sha256(PLAN),
                bytes=len(PLAN),
                tensorrt_version=version,
            )
            for capability in plans
        }
        manifest = with_plans(manifest, built)
        onnx = {} if runtime is Runtime.TORCH else {"model.onnx": sha256(GRAPH)}
        models = {
            model: facts.model_copy(
                update={
                    "onnx_sha256": onnx,
                    "precision": precision or facts.precision,
                    "engine": engine or facts.engine,
                }
            )
            for model, facts in manifest.models.items()
        }
        repository = Repository(tmp_path / "repository", manifest.model_copy(update={"models": models}))
        for model in models:
            repository.file(model, "model.onnx").parent.mkdir(parents=True)
            for name in onnx:
                repository.file(model, name).write_bytes(GRAPH)
            for plan in built.values():
                repository.file(model, plan.file).write_bytes(PLAN)
        write_manifest(repository.manifest, repository.root)
        return repository

    return make_repository


def lines(repository: Repository, machine: Machine) -> dict[str, tuple[Status, str, str]]:
    checks = check_repository(repository.root, machine)
    return {check.name: (check.status, check.detail, check.remedy) for check in checks}


def refusal(repository: Repository, machine: Machine) -> str:
    with pytest.raises(StackError) as error:
        require_servable(repository.root, repository.manifest, machine)
    return str(error.value)


CPU_SERVER = FakeMachine(gpus=(), gpu_problem="no driver", packages={EngineKind.ONNXRUNTIME: "1.32.0"})
TORCH_SERVER = FakeMachine(packages={EngineKind.TORCH: "2.13.0"})
CONTAINER = FakeMachine()
LAPTOP = FakeMachine(
    gpus=(),
    gpu_problem="nvidia-smi is not on PATH",
    tensorrt_backend=None,
    triton=TritonInstall(Path("/opt/2.51.0/bin/tritonserver"), embedded=False),
)
TWO_KINDS = {"plans": ("8.0", "8.9"), "compute_capabilities": ("8.0", "8.9")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny full checkpoint."""
    pytest.importorskip("torch", reason="the extra 'export' is not installed")
    from support.tiny_checkpoint import make_tiny_checkpoint

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    make_tiny_checkpoint(folder)
    return folder


@pytest.fixture
def torch_repository(make: Make, checkpoint: Path) -> Repository:
    facts = CheckpointFacts(name="tiny", sha256=read_spec(checkpoint).digest(), encoder_sha256="e" * 64)
    repository = make(Runtime.TORCH, checkpoint=facts)
    for model in repository.manifest.models:
        shutil.copytree(checkpoint, repository.file(model, CHECKPOINT_DIR))
    return repository


@pytest.mark.parametrize(
    ("runtime", "fields", "machine"),
    [
        (Runtime.CPU, {}, CPU_SERVER),
        (Runtime.TENSORRT, {"plans": ("8.0", "8.9"), "compute_capabilities": ("8.0", "8.9")}, CONTAINER),
        # Of GPU 0 no plan is wanted, since another one serves.
        (Runtime.TENSORRT, {"plans": ("8.9",), "gpus": (1,)}, FakeMachine(gpus=(gpu(0, "7.5"), gpu(1)))),
        # The plan for 8.0 is not built, and is not needed here.
        (Runtime.TENSORRT, {"plans": ("8.9",), "compute_capabilities": ("8.0", "8.9")}, CONTAINER),
        # What cannot be told is no reason.
        (Runtime.TENSORRT, {"plans": ("8.9",)}, FakeMachine(gpus=(gpu(free=None),))),
        (Runtime.TENSORRT, {"plans": ("8.9",)}, FakeMachine(tensorrt_backend=TensorRtBackend(Path("/b"), None))),
    ],
)
def test_a_repository_that_fits_is_served(
    make: Make, runtime: Runtime, fields: dict[str, object], machine: FakeMachine
) -> None:
    repository = make(runtime, **fields)
    require_servable(repository.root, repository.manifest, machine)
    told = lines(repository, machine)
    assert list(told) == ["encoder", "reranker"]
    assert {status for status, _, _ in told.values()} == {Status.OK}


CPU_TORCH = {"packages": {EngineKind.TORCH: "2.13.0+cpu"}, "torch_cuda": None}


@pytest.mark.parametrize("machine", [TORCH_SERVER, FakeMachine(gpus=(), **CPU_TORCH)], ids=["GPU", "CPU"])
def test_torch_serves_the_checkpoint_that_was_exported(torch_repository: Repository, machine: FakeMachine) -> None:
    require_servable(torch_repository.root, torch_repository.manifest, machine)
    assert {status for status, _, _ in lines(torch_repository, machine).values()} == {Status.OK}


def test_torch_serves_what_export_made_of_a_score_residual_for_whatever_user(tmp_path: Path) -> None:
    """Its engines' head has another length, so its folder another digest; and a hub's snapshot is links to blobs."""
    pytest.importorskip("torch", reason="the extra 'export' is not installed")
    from resrank.core.checkpoint import SlotSpec
    from resrank.export.export_options import ExportOptions
    from resrank.export.exporter import export_checkpoint
    from support.tiny_checkpoint import make_tiny_checkpoint

    blobs, snapshot, out = tmp_path / "blobs", tmp_path / "snapshot", tmp_path / "out"
    make_tiny_checkpoint(
        blobs, compact=True, residual_gate=0.0, query_residual=True, score_residual=0.3,
        slots=SlotSpec(content="relations", neighbors=3),
    )  # fmt: skip
    for blob in [path for path in blobs.rglob("*") if path.is_file()]:
        link = snapshot / blob.relative_to(blobs)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    export_checkpoint(snapshot, out, ExportOptions(runtime=Runtime.TORCH, precision=Precision.FP32))
    served = Repository(out, read_manifest(out))
    machine = FakeMachine(gpus=(), **CPU_TORCH)
    require_servable(out, served.manifest, machine)
    assert {status for status, _, _ in lines(served, machine).values()} == {Status.OK}
    files = [path for path in out.rglob("*") if not path.is_dir()]
    assert [path for path in files if path.is_symlink() or not path.stat().st_mode & stat.S_IROTH] == []

    head = served.file(Model.RERANKER, f"{CHECKPOINT_DIR}/projectors.safetensors")
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    head.unlink()  # a hard link to the encoder's
    head.write_bytes(content)
    status, cause, _ = lines(served, machine)["reranker"]
    assert status is Status.FAILED
    assert "projectors.safetensors: sha256 is" in cause


@dataclass(frozen=True)
class Case:
    """One way in which a repository and a machine do not fit, and what is said of it."""

    refusal: Refusal
    cause: str
    remedy: str
    machine: FakeMachine
    runtime: Runtime = Runtime.TENSORRT
    fields: dict[str, object] = field(default_factory=lambda: {"plans": ("8.9",)})
    damage: Callable[[Repository], object] = lambda repository: None
    at_start: bool = True  # whether `resrank serve` sees it too


def cut(name: str) -> Callable[[Repository], object]:
    return lambda repository: repository.file(Model.ENCODER, name).write_bytes(PLAN[:100])


def alter(name: str, content: bytes) -> Callable[[Repository], object]:
    return lambda repository: repository.file(Model.ENCODER, name).write_bytes(b"X" + content[1:])


def remove(name: str) -> Callable[[Repository], object]:
    return lambda repository: repository.file(Model.ENCODER, name).unlink()


CASES = [
    Case(
        Refusal.MISSING_FILE,
        "encoder/1/model.onnx is not in the repository",
        "resrank export CHECKPOINT --out",
        CPU_SERVER,
        Runtime.CPU,
        {},
        remove("model.onnx"),
    ),
    Case(
        Refusal.MISSING_FILE,
        "encoder/1/model.sm89.plan is not in the repository",
        "build-engines.sh",
        CONTAINER,
        damage=remove("model.sm89.plan"),
    ),
    Case(
        Refusal.MISSING_FILE,
        "encoder/1/model.onnx is not in the repository",
        "resrank export CHECKPOINT --out",
        CONTAINER,
        fields={},
        damage=remove("model.onnx"),
    ),
    Case(
        Refusal.OTHER_SIZE,
        "encoder/1/model.sm89.plan has 100 bytes, the manifest says 6,000",
        "copy the repository again, or build it in the Triton container",
        CONTAINER,
        damage=cut("model.sm89.plan"),
    ),
    Case(
        Refusal.CHANGED,
        "encoder/1/model.sm89.plan has changed since the export (sha256 differs)",
        "copy the repository again",
        CONTAINER,
        damage=alter("model.sm89.plan", PLAN),
        at_start=False,
    ),
    Case(
        Refusal.CHANGED,
        "encoder/1/model.onnx has changed since the export (sha256 differs)",
        "copy the repository again",
        CPU_SERVER,
        Runtime.CPU,
        {},
        alter("model.onnx", GRAPH),
        at_start=False,
    ),
    Case(
        Refusal.NOT_BUILT,
        "its plan is not built yet",
        "build it in the Triton container that will serve it:",
        CONTAINER,
        fields={},
    ),
    Case(
        Refusal.NOT_BUILT,
        "its plan for compute capability 8.9 is not built yet",
        "build it in the Triton container that will serve it:",
        CONTAINER,
        fields={"compute_capabilities": ("8.0", "8.9"), "plans": ("8.0",)},
    ),
    Case(
        Refusal.OTHER_CAPABILITY,
        "GPU 0 (NVIDIA L4, compute capability 9.0) is here and there is no plan for it, only for 8.0 and 8.9",
        "--compute-capability 90",
        FakeMachine(gpus=(gpu(0, "9.0"),)),
        fields=TWO_KINDS,
    ),
    Case(
        Refusal.OTHER_CAPABILITY,
        "GPU 1 (NVIDIA L4, compute capability 12.0) is here and there is no plan for it, only for 8.9",
        "build-engines.sh --force, or export with --gpus for those that have one",
        FakeMachine(gpus=(gpu(), gpu(1, "12.0"))),
    ),
    Case(
        Refusal.NO_GPU,
        "there is no GPU here (nvidia-smi is not on PATH)",
        "on a machine with an NVIDIA GPU of compute capability 8.0 or 8.9, or export with --runtime cpu",
        FakeMachine(gpus=(), gpu_problem="nvidia-smi is not on PATH"),
        fields=TWO_KINDS,
    ),
    Case(
        Refusal.NO_SUCH_GPU,
        "GPU 2 is not among the GPUs here (0 and 1)",
        "--gpus",
        FakeMachine(gpus=(gpu(), gpu(1))),
        fields={"plans": ("8.9",), "gpus": (0, 2)},
    ),
    Case(
        Refusal.TOO_LITTLE_MEMORY,
        "the plans alone take 0.0 GiB of GPU memory, and GPU 0 (NVIDIA L4, compute capability 8.9) has 0.0 of 22.0",
        "end what else uses the GPU",
        FakeMachine(gpus=(gpu(free=2 * len(PLAN) - 1),)),
    ),
    Case(
        Refusal.NO_BF16_GPU,
        "GPU 0 (NVIDIA L4, compute capability 7.5) does not multiply in bf16",
        "--precision fp16",
        FakeMachine(gpus=(gpu(0, "7.5"),)),
        fields={"plans": ("7.5",)},
    ),
    Case(
        Refusal.NO_BF16_CPU,
        "it multiplies in bf16 and this CPU has no bf16 instructions",
        "--precision fp32",
        FakeMachine(gpus=(), packages={EngineKind.OPENVINO: "2026.4.1"}, cpu_bf16=False),
        Runtime.CPU,
        {"engine": EngineKind.OPENVINO, "precision": Precision.BF16},
    ),
    Case(
        Refusal.NO_VNNI,
        "it multiplies in int8 and this CPU has no VNNI instructions",
        "--precision fp32",
        FakeMachine(gpus=(), packages={EngineKind.OPENVINO: "2026.4.1"}, cpu_vnni=False),
        Runtime.CPU,
        {"engine": EngineKind.OPENVINO, "precision": Precision.INT8},
    ),
    Case(
        Refusal.NO_BACKEND,
        "/opt/2.51.0/bin/tritonserver has no tensorrt backend",
        "NVIDIA's Triton container (deploy/docker)",
        LAPTOP,
    ),
    Case(
        Refusal.NO_BACKEND,
        "no Triton can be started here, so there is no tensorrt backend",
        "NVIDIA's Triton container",
        FakeMachine(triton=None, tensorrt_backend=None),
    ),
    Case(
        Refusal.NOT_INSTALLED,
        "ONNX Runtime is not installed",
        install_command("cpu"),
        CONTAINER,
        Runtime.CPU,
        {},
    ),
    Case(
        Refusal.NOT_SERVED,
        "nothing serves plans of TensorRT for RTX",
        "export with --runtime tensorrt",
        CONTAINER,
        Runtime.TENSORRT_RTX,
        {**TWO_KINDS, "version": "1.7.1.116"},
    ),
    Case(
        Refusal.OTHER_VERSION,
        "its plan for 8.9 was built by TensorRT 11.4.1.12, Triton's backend runs 11.3.0, and plans load in",
        "serve it with TensorRT 11.4.1.12, or build it in the Triton container that will serve it:",
        CONTAINER,
        fields={"plans": ("8.9",), "version": "11.4.1.12"},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.refusal.name}-{case.cause[:24]}")
def test_what_does_not_fit_is_one_sentence_with_its_remedy(make: Make, case: Case) -> None:
    repository = make(case.runtime, **case.fields)
    case.damage(repository)
    status, detail, remedy = lines(repository, case.machine)["encoder"]
    assert status is Status.FAILED
    assert case.refusal.value in case.cause or case.refusal is Refusal.OTHER_VERSION
    assert case.refusal.value in detail
    assert case.cause in detail
    assert case.remedy in remedy
    if not case.at_start:
        require_servable(repository.root, repository.manifest, case.machine)
        return
    sentence = refusal(repository, case.machine)
    assert sentence.startswith(f"{repository.root} cannot be served here: encoder: ")
    assert case.cause in sentence
    assert case.remedy in sentence
    assert "\n" not in sentence


def test_torch_without_cuda_is_refused_where_triton_would_put_it_on_a_gpu(torch_repository: Repository) -> None:
    sentence = refusal(torch_repository, FakeMachine(**CPU_TORCH))
    assert f"torch 2.13.0+cpu was {Refusal.NO_CUDA}, and Triton puts the engine on GPU 0" in sentence


def test_torch_insists_on_the_gpus_that_were_named(torch_repository: Repository) -> None:
    torch_repository.manifest = torch_repository.manifest.model_copy(update={"gpus": (0,)})
    assert Refusal.NO_GPU in refusal(torch_repository, FakeMachine(gpus=(), **CPU_TORCH))


def test_another_checkpoint_is_refused(torch_repository: Repository) -> None:
    for name, found in (("config.json", Refusal.CHANGED), ("", Refusal.MISSING_FILE)):
        damaged = torch_repository.file(Model.RERANKER, CHECKPOINT_DIR) / "reranker" / name
        damaged.unlink() if name else shutil.rmtree(damaged.parent)
        sentence = refusal(torch_repository, TORCH_SERVER)
        assert f"reranker: reranker/1/checkpoint {found}" in sentence


def test_changed_weights_are_found_by_their_digest(torch_repository: Repository) -> None:
    weights = torch_repository.file(Model.RERANKER, CHECKPOINT_DIR) / "reranker" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    require_servable(torch_repository.root, torch_repository.manifest, TORCH_SERVER)
    status, detail, _ = lines(torch_repository, TORCH_SERVER)["reranker"]
    assert status is Status.FAILED
    assert "reranker/1/checkpoint has changed since the export" in detail


def test_every_refusal_is_met_above() -> None:
    assert {case.refusal for case in CASES} == set(Refusal) - {Refusal.NO_CUDA}


@pytest.mark.parametrize("one", Refusal)
def test_every_refusal_is_explained_in_the_docs(one: Refusal) -> None:
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| …")]
    assert any(one.value in row.split("|")[1] for row in rows)


def test_a_laptop_is_told_everything_at_once_one_line_an_engine(make: Make) -> None:
    repository = make(Runtime.TENSORRT)
    told = lines(repository, LAPTOP)
    assert list(told) == ["encoder", "reranker"]
    for status, detail, remedy in told.values():
        assert status is Status.FAILED
        assert detail == (
            "tiny on TensorRT bf16, 1 profile: its plan is not built yet; Triton /opt/2.51.0/bin/tritonserver has no "
            "tensorrt backend; there is no GPU here (nvidia-smi is not on PATH)"
        )
        assert remedy.count("; ") == 2
        assert "\n" not in detail + remedy
    assert refusal(repository, LAPTOP).endswith(f" (2 more: resrank doctor {repository.root})")


def test_a_folder_that_is_no_repository_is_one_line(tmp_path: Path) -> None:
    (check,) = check_repository(tmp_path, CONTAINER)
    assert (check.name, check.status) == ("manifest", Status.FAILED)
    assert f"{tmp_path} has no manifest.json" in check.detail


def test_a_repository_for_a_cpu_asks_no_driver_and_is_compared_at_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> None:
        pytest.fail("a program was run")

    monkeypatch.setattr("subprocess.run", asked)
    repository = make(Runtime.CPU)
    if find_spec("onnxruntime") is None:
        pytest.skip("the extra 'cpu' is not installed")
    start = time.process_time()
    require_servable(repository.root, repository.manifest, Machine())
    assert time.process_time() - start < 0.05


def test_the_bulk_encoders_copy_is_compared_too(make: Make) -> None:
    repository, machine = make(Runtime.CPU), FakeMachine(packages=dict.fromkeys(EngineKind, "1"))
    bulk = repository.file(Model.BULK_ENCODER, "model.onnx")
    bulk.parent.mkdir(parents=True)
    bulk.write_bytes(b"half a gra")
    (encoder, reranker) = check_repository(repository.root, machine)
    assert "bulk_encoder/1/model.onnx has changed since the export" in encoder.detail
    assert reranker.status is Status.OK
    bulk.unlink()
    with pytest.raises(StackError, match=r"encoder: bulk_encoder/1/model\.onnx is not in the repository"):
        require_servable(repository.root, repository.manifest, machine)
