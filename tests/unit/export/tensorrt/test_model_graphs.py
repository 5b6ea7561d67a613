"""Our own graphs in TensorRT's hands: every attention is one layer, and a plan is built from them for the profiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from resrank.checkpoint import RERANKER_DIR
from resrank.engines import Precision
from resrank.modeling import ResRankModel
from resrank.names import Model
from resrank.tokenization import PromptTokenizer
from resrank_export.profiles import default_profiles
from resrank_export.tensorrt import EngineBuilder
from resrank_export.typed_graphs import export_typed_encoder, export_typed_reranker
from support.tiny_checkpoint import make_tiny_checkpoint

LAYERS = 2  # of either tiny backbone


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    make_tiny_checkpoint(folder, embedding_dim=64, hidden_size=64)  # heads of 16, as attention kernels want them
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> ResRankModel:
    return ResRankModel.from_checkpoint(checkpoint)


@pytest.mark.parametrize("name", [Model.ENCODER, Model.RERANKER])
def test_every_attention_is_one_layer_and_one_kernel(
    rtx: EngineBuilder, checkpoint: Path, model: ResRankModel, name: Model, tmp_path: Path
) -> None:
    export = export_typed_encoder if name is Model.ENCODER else export_typed_reranker
    graph = export(model, Precision.BF16, tmp_path)
    summary = rtx.inspect(graph)
    assert summary.layers.attention == LAYERS
    assert summary.layers.softmax == 0
    assert summary.unfused_attention == ()
    layout = PromptTokenizer(checkpoint / RERANKER_DIR, model.spec.reranker).layout
    profiles = default_profiles(model.spec, layout).all_shapes(name, model.spec)
    plan = rtx.build(graph, profiles, 89, tmp_path / "model.plan")
    assert plan.fused_attention
    assert plan.layers == summary.layers
