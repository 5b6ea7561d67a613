"""Exported graphs against torch, and a gate that notices what is wrong with an engine."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import kendalltau

from resrank.core.checkpoint import (
    SlotContent,
    SlotSpec,
    file_sha256,
    folder_sha256,
    read_spec,
    validate_folder,
    write_spec,
)
from resrank.core.errors import CheckpointError, ExportError, ParityError
from resrank.core.fusion import CosineMap
from resrank.core.names import Model, Tensor
from resrank.core.tokenization import PromptTokenizer
from resrank.export.engine_head import engine_head
from resrank.export.export_options import ExportOptions
from resrank.export.exporter import export_checkpoint
from resrank.export.onnx_graphs import (
    check_dynamic_axes,
    export_encoder,
    export_reranker,
    refuse_sliding_windows,
    reranker_sample,
)
from resrank.export.parity import ParityGate, ParityResult, kendall_tau, parity_table
from resrank.export.runtimes import cpu
from resrank.model.modeling import ResRankModel
from resrank.serving.engines import EngineKind, EngineOptions, Precision, load_engine
from resrank.serving.engines.base import EngineError
from support.tiny_checkpoint import make_tiny_checkpoint

ORT = EngineOptions(EngineKind.ONNXRUNTIME, Precision.FP32, threads=1)
OPENVINO = EngineOptions(EngineKind.OPENVINO, Precision.FP32, threads=1)


@dataclass(frozen=True)
class Exported:
    model: ResRankModel
    gate: ParityGate
    encoder: Path
    reranker: Path


RELATIONAL: dict[str, dict[str, Any]] = {
    "compact": {"content": "relations", "compact": True, "residual_gate": 0.0, "score_residual": 0.3},
    "text-relations": {"content": "relations", "residual_gate": 0.0, "score_residual": 0.3},
    "text-both": {"content": "both", "residual_gate": 0.7, "score_residual": 0.3},
    "compact-vectors": {"content": "vector", "compact": True, "residual_gate": 0.0, "score_residual": 0.3},
}


def make_relational(folder: Path, name: str, **overrides: Any) -> None:
    fields = {**RELATIONAL[name], **overrides}
    content = SlotContent(fields.pop("content"))
    slots = SlotSpec(content=content, neighbors=5 if content.has_relations else None)
    cosine_map = CosineMap(slope=4.84, center=0.72, offset=0.05)
    make_tiny_checkpoint(folder, query_residual=True, slots=slots, cosine_map=cosine_map, **fields)


@pytest.fixture(scope="module", params=["bert-linear", "llama-identity", *RELATIONAL])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("export") / request.param
    if request.param == "bert-linear":
        make_tiny_checkpoint(folder, query_residual=True, residual_gate=0.0)  # the gate must look behind a g of 0
    elif request.param in RELATIONAL:
        make_relational(folder, request.param)
    else:
        make_tiny_checkpoint(folder, hidden_size=32, encoder_family="llama", pooling="last")
    scratch = tmp_path_factory.mktemp("scratch")
    model = ResRankModel.from_checkpoint(engine_head(folder, read_spec(folder), scratch).checkpoint)
    layout = PromptTokenizer(folder / "reranker", model.spec.reranker).layout
    return Exported(
        model,
        ParityGate(model, layout),
        export_encoder(model, folder / "onnx" / "encoder"),
        export_reranker(model, folder / "onnx" / "reranker"),
    )


@pytest.mark.parametrize("options", [ORT, OPENVINO], ids=lambda options: options.kind.value)
def test_both_graphs_pass_on_every_engine(exported: Exported, options: EngineOptions) -> None:
    encoder = exported.gate.check_encoder(load_engine(exported.encoder, options), options)
    reranker = exported.gate.check_reranker(load_engine(exported.reranker, options), options)
    assert encoder.passed, parity_table([encoder])
    assert reranker.passed, parity_table([reranker])
    assert encoder.rows > 3
    assert reranker.rows > exported.model.spec.reranker.max_passages
    assert (reranker.state_cosine is None) == (not exported.model.spec.fusion.has_vector_residual)


def perturb_one_weight(path: Path, out: Path) -> Path:
    """Scales the first weight matrix of a graph by 1.5."""
    graph = onnx.load(path)
    weights = {initializer.name: initializer for initializer in graph.graph.initializer}
    name = next(node.input[1] for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in weights)
    changed = (onnx.numpy_helper.to_array(weights[name]) * 1.5).astype(np.float32)
    weights[name].CopyFrom(onnx.numpy_helper.from_array(changed, name))
    onnx.save(graph, out)
    return out


def test_one_perturbed_weight_fails_the_gate(exported: Exported, tmp_path: Path) -> None:
    broken_encoder = perturb_one_weight(exported.encoder, tmp_path / "encoder.onnx")
    broken_reranker = perturb_one_weight(exported.reranker, tmp_path / "reranker.onnx")
    encoder = exported.gate.check_encoder(load_engine(broken_encoder, ORT), ORT)
    reranker = exported.gate.check_reranker(load_engine(broken_reranker, ORT), ORT)
    assert not encoder.passed
    assert not reranker.passed
    assert parity_table([encoder, reranker]).count("FAIL") == 2


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_decoder_whose_config_says_that_it_attends_both_ways_does_so_in_every_engine(
    pooling: str, tmp_path: Path
) -> None:
    make_tiny_checkpoint(tmp_path / "causal", encoder_family="llama", pooling=pooling)
    shutil.copytree(tmp_path / "causal", tmp_path / "both")
    config = tmp_path / "both" / "encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "is_causal": False}))
    spec = read_spec(tmp_path / "both")
    encoder = spec.encoder.model_copy(update={"sha256": folder_sha256(tmp_path / "both" / "encoder")})
    write_spec(spec.model_copy(update={"encoder": encoder}), tmp_path / "both")
    causal, both = (ResRankModel.from_checkpoint(tmp_path / name) for name in ("causal", "both"))
    assert (causal.encoder_is_causal, both.encoder_is_causal) == (True, False)
    ids, mask = torch.tensor([[5, 6, 7, 8]]), torch.ones(1, 4, dtype=torch.int64)
    with torch.inference_mode():
        assert not torch.allclose(causal.encode(ids, mask), both.encode(ids, mask), atol=1e-3)
    gate = ParityGate(both, PromptTokenizer(tmp_path / "both" / "reranker", spec.reranker).layout)
    graph = export_encoder(both, tmp_path / "onnx")
    for options in (ORT, OPENVINO):
        result = gate.check_encoder(load_engine(graph, options), options)
        assert result.passed, parity_table([result])


@pytest.mark.parametrize("trained_head", [True, False])
def test_engines_hold_the_head_in_one_length_and_scoring_the_rest(trained_head: bool, tmp_path: Path) -> None:
    make_relational(tmp_path / "tiny", "compact", trained_head=trained_head)
    spec = read_spec(tmp_path / "tiny")
    (tmp_path / "scratch").mkdir()
    head = engine_head(tmp_path / "tiny", spec, tmp_path / "scratch")

    given, held = (load_file(folder / "projectors.safetensors") for folder in (tmp_path / "tiny", head.checkpoint))
    assert float(held["score_head.weight"].norm()) == pytest.approx(48**-0.5)
    np.testing.assert_allclose(
        head.factor * held["score_head.weight"], 0.3 * given["score_head.weight"], rtol=1e-5, atol=1e-8
    )
    assert (head.factor > 0) == trained_head
    assert held["p_in.weight"].equal(given["p_in.weight"])
    validate_folder(head.checkpoint)
    assert (head.checkpoint / "projectors.safetensors").stat().st_mode & 0o777 == 0o644
    placed = read_spec(head.checkpoint).fusion.projectors_sha256
    assert placed == file_sha256(head.checkpoint / "projectors.safetensors")


def test_another_head_than_the_checkpoint_names_is_not_exported(tmp_path: Path) -> None:
    make_relational(tmp_path / "tiny", "compact")
    file = tmp_path / "tiny" / "projectors.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "score_head.weight": -tensors["score_head.weight"]}, file)
    with pytest.raises(CheckpointError, match=r"projectors\.safetensors: sha256 is \w+, but resrank\.json says"):
        export_checkpoint(tmp_path / "tiny", tmp_path / "out")
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"projectors\.safetensors: "):
        export_checkpoint(tmp_path / "tiny", tmp_path / "out")


def test_residuals_are_held_to_the_tolerance_as_large_as_they_are_served(tmp_path: Path) -> None:
    make_relational(tmp_path / "tiny", "compact")
    spec = read_spec(tmp_path / "tiny")
    (tmp_path / "scratch").mkdir()
    head = engine_head(tmp_path / "tiny", spec, tmp_path / "scratch")
    model = ResRankModel.from_checkpoint(head.checkpoint)
    layout = PromptTokenizer(tmp_path / "tiny" / "reranker", spec.reranker).layout
    graph = export_reranker(model, tmp_path / "onnx")

    class Rounding:
        """An engine whose numbers are a little off."""

        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            found = load_engine(graph, ORT).run(inputs)
            return {name: array + np.float32(3e-4) for name, array in found.items()}

    differences = [
        ParityGate(model, layout, residual_factor=factor).check_reranker(Rounding(), ORT).score_difference
        for factor in (0.1, 1.0, 4.0)
    ]
    assert differences == pytest.approx([3e-4, 3e-4, 1.2e-3], abs=2e-5)


def test_numbers_of_a_broken_compact_reranker_fail_even_with_a_head_of_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_relational(tmp_path / "tiny", "compact", trained_head=False)

    def export_and_perturb(model: ResRankModel, folder: Path) -> Path:
        path = export_reranker(model, folder)
        return perturb_one_weight(path, path)

    monkeypatch.setattr(cpu, "export_reranker", export_and_perturb)
    with pytest.raises(ParityError, match=r"(?s)no engine computes the reranker.*no states.*FAIL"):
        export_checkpoint(tmp_path / "tiny", tmp_path / "repository", ExportOptions(cpu_engine=EngineKind.ONNXRUNTIME))


def test_export_fails_with_the_table_when_no_engine_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_checkpoint(tmp_path / "tiny")

    def export_and_perturb(model: ResRankModel, folder: Path) -> Path:
        path = export_reranker(model, folder)
        return perturb_one_weight(path, path)

    monkeypatch.setattr(cpu, "export_reranker", export_and_perturb)
    with pytest.raises(ParityError, match=r"(?s)no engine computes the reranker.*FAIL"):
        export_checkpoint(tmp_path / "tiny", tmp_path / "repository", ExportOptions(cpu_engine=EngineKind.ONNXRUNTIME))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_nan_does_not_pass() -> None:
    assert not ParityResult(Model.RERANKER, ORT, float("nan"), 0.0, 1.0, rows=1).passed
    assert not ParityResult(Model.RERANKER, ORT, 1.0, float("nan"), 1.0, rows=1).passed


def test_kendall_tau_agrees_with_scipy_and_skips_near_ties() -> None:
    rng = np.random.default_rng(0)
    truth, other = (rng.standard_normal(40).astype(np.float32) for _ in range(2))
    assert kendall_tau([truth], [other], gap=0.0) == pytest.approx(kendalltau(truth, other).statistic, abs=1e-6)
    near = np.array([0.0, 1e-3, 1.0], np.float32)
    swapped = np.array([1e-3, 0.0, 1.0], np.float32)
    assert kendall_tau([near], [swapped], gap=0.0) == pytest.approx(1 / 3)
    assert kendall_tau([near], [swapped], gap=1e-2) == 1.0
    for broken in (np.nan, np.inf):  # also where no pair is far enough apart to be compared
        assert math.isnan(kendall_tau([near, near[:1]], [near, np.array([broken], np.float32)], gap=1e-2))
        assert math.isnan(kendall_tau([near], [np.array([0.0, broken, 1.0], np.float32)], gap=0.0))


def test_a_frozen_axis_is_named(exported: Exported, tmp_path: Path) -> None:
    graph = onnx.load(exported.reranker)
    axis = next(
        value for value in graph.graph.input if value.name == Tensor.PASSAGE_POSITIONS
    ).type.tensor_type.shape.dim[1]
    axis.dim_value = 5
    onnx.save(graph, tmp_path / "frozen.onnx")
    with pytest.raises(ExportError, match=r"axis 1 \(candidates\) of PASSAGE_POSITIONS was frozen to 5"):
        check_dynamic_axes(tmp_path / "frozen.onnx", reranker_sample(exported.model.spec))


def test_attention_that_slides_within_the_limits_is_refused(tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "tiny")
    config = tmp_path / "tiny" / "reranker" / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "model_type": "mistral", "architectures": None, "sliding_window": 60}))
    model = ResRankModel.from_checkpoint(tmp_path / "tiny", verify_hashes=False)
    layout = PromptTokenizer(tmp_path / "tiny" / "reranker", model.spec.reranker).layout
    longest = layout.length(32, 16)
    with pytest.raises(ExportError, match=f"reranker: its attention slides over 60 positions, .* rows of {longest}"):
        refuse_sliding_windows(model, layout)
    model.reranker.config.sliding_window = longest
    refuse_sliding_windows(model, layout)


def test_engines_refuse_what_they_cannot_run(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    for options in (ORT, OPENVINO):
        with pytest.raises(EngineError, match=r"model\.onnx: \w+ cannot"):
            load_engine(tmp_path / "model.onnx", options)
    with pytest.raises(EngineError, match="use openvino"):
        load_engine(tmp_path / "model.onnx", EngineOptions(EngineKind.ONNXRUNTIME, Precision.BF16))
