"""Typed graphs of rerankers that read relations: within tolerance in a low type, and TensorRT builds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resrank.core.checkpoint import SlotContent, SlotSpec, read_spec
from resrank.core.names import Model
from resrank.core.tokenization import PromptTokenizer
from resrank.export.engine_head import engine_head
from resrank.export.parity import ParityGate, parity_table
from resrank.export.profiles import default_profiles
from resrank.export.tensorrt import EngineBuilder
from resrank.export.typed_graphs import TypedGraph
from resrank.export.typed_parity import check_typed
from resrank.model.modeling import ResRankModel
from resrank.serving.engines import Precision
from support.tiny_checkpoint import make_tiny_checkpoint

# Both residuals together are off by the sum of what each is off by: random weights of bf16 are too coarse for that.
CHECKPOINTS: dict[str, tuple[dict[str, Any], Precision]] = {
    "compact": (
        {"compact": True, "residual_gate": 0.0, "slots": SlotSpec(content=SlotContent.RELATIONS, neighbors=5)},
        Precision.BF16,
    ),
    "text-both": (
        {"residual_gate": 0.7, "slots": SlotSpec(content=SlotContent.BOTH, neighbors=5)},
        Precision.FP16,
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_relational_graph_is_typed_and_built(name: str, rtx: EngineBuilder, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    fields, precision = CHECKPOINTS[name]
    make_tiny_checkpoint(checkpoint, query_residual=True, score_residual=0.3, **fields)
    spec = read_spec(checkpoint)
    model = ResRankModel.from_checkpoint(engine_head(checkpoint, spec, tmp_path).checkpoint)
    layout = PromptTokenizer(checkpoint / "reranker", spec.reranker).layout
    graph = TypedGraph.trace(model, Model.RERANKER).write(precision, tmp_path / "graph")
    parity = check_typed(ParityGate(model, layout), Model.RERANKER, graph, precision)
    assert parity.passed, parity_table([parity])

    shapes = default_profiles(spec, layout).all_shapes(Model.RERANKER, spec)
    (plan,) = rtx.build_each(graph, shapes[:1], {89: tmp_path / "model.plan"})
    assert plan.path.stat().st_size > 0
