"""``--runtime tensorrt`` and ``tensorrt-rtx`` from checkpoint to repository, on a machine without a GPU."""

from __future__ import annotations

import ctypes.util
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import onnx_ir as ir
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from resrank.core.checkpoint import file_sha256, read_spec
from resrank.core.errors import ExportError, ParityError
from resrank.core.names import Model
from resrank.export import exporter, typed_graphs
from resrank.export.export_options import ExportOptions
from resrank.export.exporter import ExportReport, export_checkpoint
from resrank.export.manifest import Runtime, read_manifest
from resrank.export.profiles import RerankerProfile
from resrank.export.tensorrt import EngineBuilder
from resrank.export.typed_graphs import TypedGraph
from resrank.model.modeling import ResRankModel
from resrank.serving.engines import EngineKind, Precision
from resrank.stack.check import Status
from resrank.stack.gpu import Machine
from resrank.stack.repository_check import check_repository
from support.tiny_families import make_family_checkpoint

ENGINES = (Model.ENCODER, Model.RERANKER)
# The first is a CPU's alone, the second of checkpoints that read the query's vector.
MODELS = tuple(model for model in Model if model not in (Model.BULK_ENCODER, Model.RERANK_EMBEDDED))
no_driver = pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="this machine has an NVIDIA driver")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans") / "tiny"
    make_family_checkpoint("llama", folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def traced_once(checkpoint: Path) -> Iterator[None]:
    """Every export here is of one checkpoint, and tracing takes seconds."""
    trace, model = TypedGraph.trace, ResRankModel.from_checkpoint(checkpoint)
    once = functools.cache(lambda name: trace(model, name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TypedGraph, "trace", lambda _model, name: once(name))
        yield


@pytest.fixture(scope="module")
def ahead(rtx: EngineBuilder, checkpoint: Path) -> ExportReport:
    """Built for two kinds of GPU by TensorRT for RTX."""
    options = ExportOptions(
        runtime=Runtime.TENSORRT_RTX, precision=Precision.BF16, compute_capabilities=("8.0", "8.9"), gpus=(0, 1)
    )
    return export_checkpoint(checkpoint, checkpoint.parent / "ahead", options)


@pytest.fixture(scope="module")
def unbuilt(checkpoint: Path) -> ExportReport:
    """Left to the container."""
    options = ExportOptions(runtime=Runtime.TENSORRT, precision=Precision.BF16)
    return export_checkpoint(checkpoint, checkpoint.parent / "unbuilt", options)


def configs(repository: Path) -> dict[Model, ModelConfig]:
    return {
        model: text_format.Parse((repository / model / "config.pbtxt").read_text(), ModelConfig()) for model in MODELS
    }


def test_plans_built_ahead_are_in_place_and_in_the_manifest(ahead: ExportReport, rtx: EngineBuilder) -> None:
    manifest = read_manifest(ahead.repository)
    assert manifest == ahead.manifest
    assert manifest.compute_capabilities == ("8.0", "8.9")
    for model in ENGINES:
        version, facts = ahead.repository / model / "1", manifest.models[model]
        assert {file.name for file in version.iterdir()} == {"model.sm80.plan", "model.sm89.plan"}
        assert manifest.missing_plans(model) == ()
        assert (facts.engine, facts.precision, facts.opset) == (EngineKind.TENSORRT_RTX, Precision.BF16, 23)
        assert len(facts.profiles) == 2
        assert set(facts.onnx_sha256) == {"model.onnx", "model.onnx.data"}
        for capability, plan in facts.plans.items():
            file = version / plan.file
            assert plan.file == f"model.sm{capability.replace('.', '')}.plan"
            assert (plan.bytes, plan.sha256) == (file.stat().st_size, file_sha256(file))
            assert plan.tensorrt_version == rtx.version
            assert not plan.timing_cache
    assert not (ahead.repository / "build-engines.sh").exists()
    assert manifest.versions["tensorrt_rtx_cu13_bindings"] is not None


def test_plans_built_ahead_are_chosen_by_capability_as_those_that_serve(ahead: ExportReport) -> None:
    for model in ENGINES:
        config = configs(ahead.repository)[model]
        assert config.platform == "tensorrt_plan"
        assert dict(config.cc_model_filenames) == {"8.0": "model.sm80.plan", "8.9": "model.sm89.plan"}
        assert list(config.instance_group[0].gpus) == [0, 1]


def test_the_graphs_are_held_against_the_reference(ahead: ExportReport) -> None:
    for facts in ahead.manifest.models.values():
        assert facts.parity is not None
        assert facts.parity.by == "onnxruntime"
        assert facts.parity.state_cosine >= facts.parity.tolerance.state_cosine


def test_a_repository_that_is_complete_but_for_its_plans(unbuilt: ExportReport) -> None:
    repository, manifest = unbuilt.repository, read_manifest(unbuilt.repository)
    assert {path.name for path in repository.iterdir()} == {*MODELS, "manifest.json", "build-engines.sh"}
    assert unbuilt.put_off is not None
    read = configs(repository)
    for model in ENGINES:
        version, facts = repository / model / "1", manifest.models[model]
        assert {file.name for file in version.iterdir()} == {"model.onnx", "model.onnx.data"}
        assert facts.onnx_sha256 == {file.name: file_sha256(file) for file in version.iterdir()}
        assert manifest.missing_plans(model) is None  # one, of whatever GPU it will be
        assert read[model].platform == "tensorrt_plan"
        assert read[model].default_model_filename == "model.plan"
        assert list(read[model].instance_group[0].profile) == ["0", "1"]
        assert len(facts.profiles) == 2
    script = repository / "build-engines.sh"
    subprocess.run(["bash", "-n", script], check=True)
    refusal = subprocess.run([script], capture_output=True, text=True, check=False)
    assert refusal.returncode == 1
    assert refusal.stderr.startswith("build-engines.sh: no trtexec found: run this inside NVIDIA's Triton container")


@no_driver
def test_doctor_says_of_each_engine_in_one_line_why_it_does_not_run_here(
    unbuilt: ExportReport, ahead: ExportReport
) -> None:
    for report, words in (
        (unbuilt, ("is not built yet", "no tensorrt backend", "no GPU here", "build-engines.sh")),
        (ahead, ("nothing serves plans of TensorRT for RTX", "export with --runtime tensorrt")),
    ):
        checks = check_repository(report.repository, Machine())
        assert [check.name for check in checks] == ["encoder", "reranker"]
        for check in checks:
            assert check.status is Status.FAILED
            said = f"{check.detail}: {check.remedy}"
            assert "\n" not in said
            for word in words:
                assert word in said


def test_the_first_precision_that_passes_is_taken(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lower = typed_graphs.lower

    def lower_badly(model: ir.Model, precision: Precision) -> None:
        """As if bf16 were not enough for this model."""
        lower(model, precision)
        product = next(node for node in model.graph if node.op_type == "MatMul")
        weight = product.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        wrong = weight.const_value.numpy() * 2
        weight.const_value = ir.tensor(wrong, dtype=weight.dtype, name=weight.name)

    monkeypatch.setattr(typed_graphs, "lower", lower_badly)
    out = checkpoint.parent / "auto"
    report = export_checkpoint(checkpoint, out, ExportOptions(runtime=Runtime.TENSORRT))
    assert {facts.precision for facts in report.manifest.models.values()} == {Precision.FP32}
    tried = [(choice.parity.options.precision, choice.parity.passed) for choice in report.tried]
    assert tried == [(Precision.BF16, False), (Precision.FP32, True)] * 2
    with pytest.raises(ParityError, match=r"(?s)no engine computes the encoder.*FAIL"):
        export_checkpoint(
            checkpoint, out.with_name("none"), ExportOptions(runtime=Runtime.TENSORRT, precision=Precision.BF16)
        )
    assert not list(checkpoint.parent.glob("*none*"))


def spoil_family(checkpoint: Path) -> None:
    config = checkpoint / "reranker" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "gpt2"}))


@pytest.mark.parametrize(
    ("spoil", "wishes", "said"),
    [
        (
            spoil_family,
            {},
            "reranker: the backbone's model_type is 'gpt2', and TensorRT engines of it are not checked; take",
        ),
        (
            lambda _: None,
            {"reranker_profiles": (RerankerProfile.parse("1:8:16x16:64:100000x1:4:8"),)},
            "reranker profile 0: sequence 16:64:100000 reaches 100000, but the checkpoint allows",
        ),
        (
            lambda _: None,
            {"reranker_profiles": (RerankerProfile.parse("2:8:16x16:32:64x1:4:8"),)},
            r"reranker: no profile takes a single row \(2:8:16\); give one whose batch starts at 1",
        ),
    ],
    ids=["family", "beyond-the-limits", "no-lone-rows"],
)
def test_what_cannot_be_built_is_refused_before_anything_is_loaded(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    wishes: dict[str, tuple[RerankerProfile, ...]],
    said: str,
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    spoil(folder)
    monkeypatch.setattr(ResRankModel, "from_checkpoint", None)
    with pytest.raises(ExportError, match=f"^{said}"):
        export_checkpoint(folder, tmp_path / "out", ExportOptions(runtime=Runtime.TENSORRT, **wishes))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_disk_that_is_too_small_is_seen_before_the_export(
    rtx: EngineBuilder, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    options = ExportOptions(runtime=Runtime.TENSORRT_RTX, compute_capabilities=("8.0", "8.9"))
    with pytest.raises(ExportError, match=r"the export needs at least \d\.\d GB and 0\.0 GB are free: make room or"):
        export_checkpoint(checkpoint, tmp_path / "out", options)
    assert not list(tmp_path.iterdir())


def test_a_builder_that_is_not_installed_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ExportError, match=r"^tensorrt_rtx is not installed .*: (uv )?pip install .*\[tensorrt-rtx\]'?$"
    ):
        export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(runtime=Runtime.TENSORRT_RTX))
    assert not list(tmp_path.iterdir())


def test_a_proof_names_the_gpus_that_it_is_for(rtx: EngineBuilder, checkpoint: Path, tmp_path: Path) -> None:
    possible = ",".join(map(str, rtx.capabilities))
    with pytest.raises(ExportError, match=rf"^TensorRT for RTX {rtx.version} builds for GPUs .*capability {possible}$"):
        export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(runtime=Runtime.TENSORRT_RTX))
    assert not list(tmp_path.iterdir())


def test_the_spec_of_the_checkpoint_is_what_is_served(ahead: ExportReport, checkpoint: Path) -> None:
    assert ahead.spec == read_spec(checkpoint)
    assert ahead.manifest.checkpoint.sha256 == read_spec(checkpoint).digest()
