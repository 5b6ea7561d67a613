"""Every family in every role and precision: computes what torch does, is taken by TensorRT, and builds.

The one table behind docs/families.md. Each graph is traced once, since that takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from resrank.core.checkpoint import RERANKER_DIR
from resrank.core.names import Model, Tensor
from resrank.core.prompt import PromptLayout
from resrank.core.scoring import normalize
from resrank.core.tokenization import PromptTokenizer
from resrank.export.parity import ParityGate, parity_table
from resrank.export.profiles import default_profiles
from resrank.export.tensorrt import EngineBuilder
from resrank.export.typed_graphs import TypedGraph
from resrank.export.typed_parity import TypedGraphEngine, check_typed
from resrank.export.typed_precision import LOW_TYPES
from resrank.model.modeling import ResRankModel
from resrank.serving.engines import EngineKind, EngineOptions, Precision, load_engine
from support.tiny_families import DECODERS, ENCODERS, LAYERS, make_family_checkpoint, make_projected_checkpoint

PROJECTORS = "llama behind projectors"
"""As the default checkpoint is: the encoder's size is another than the reranker's."""

CASES = [
    *((family, Model.ENCODER) for family in (*DECODERS, *ENCODERS)),
    *((family, Model.RERANKER) for family in (*DECODERS, PROJECTORS)),
]
CAPABILITIES = (80, 89)
TYPED = (Precision.FP32, *LOW_TYPES)
"""What graphs of types are written in; int8 is of CPUs alone."""
ELEMENT = {Precision.FP32: TensorProto.FLOAT, Precision.FP16: TensorProto.FLOAT16, Precision.BF16: TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Case:
    family: str
    role: Model
    checkpoint: Path
    model: ResRankModel
    layout: PromptLayout
    gate: ParityGate
    graphs: Mapping[Precision, Path]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].replace(' ', '-')}-{case[1]}")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, role = request.param
    folder = tmp_path_factory.mktemp("families")
    checkpoint = folder / "checkpoint"
    if family == PROJECTORS:
        make_projected_checkpoint(checkpoint)
    else:
        make_family_checkpoint(family, checkpoint)
    model = ResRankModel.from_checkpoint(checkpoint)
    layout = PromptTokenizer(checkpoint / RERANKER_DIR, model.spec.reranker).layout
    traced = TypedGraph.trace(model, role)
    graphs = {precision: traced.write(precision, folder / precision) for precision in TYPED}
    return Case(family, role, checkpoint, model, layout, ParityGate(model, layout), graphs)


@pytest.mark.parametrize("precision", TYPED)
def test_the_graph_computes_what_torch_does(case: Case, precision: Precision) -> None:
    parity = check_typed(case.gate, case.role, case.graphs[precision], precision)
    assert parity.passed, parity_table([parity])


def test_the_bf16_graph_agrees_with_torch_in_bf16(case: Case) -> None:
    """By kernels of another library, since ONNX Runtime has none in bf16 and rounds between casts."""
    engine = load_engine(case.checkpoint / case.role, EngineOptions(EngineKind.TORCH, Precision.BF16, threads=1))
    graph = TypedGraphEngine(case.graphs[Precision.BF16], Precision.BF16)
    if case.role is Model.ENCODER:
        inputs, output = case.gate.encoder_case.inputs, Tensor.EMBEDDING
    else:
        inputs, output = case.gate.reranker_case.inputs, Tensor.QUERY_STATE
    by_torch, by_graph = (normalize(each.run(inputs)[output]) for each in (engine, graph))
    assert np.einsum("nd,nd->n", by_torch, by_graph).min() >= 0.9995


@pytest.mark.parametrize("precision", TYPED)
def test_tensorrt_takes_every_attention_as_one_layer(rtx: EngineBuilder, case: Case, precision: Precision) -> None:
    summary = rtx.inspect(case.graphs[precision])
    assert summary.layers.attention == LAYERS
    assert summary.layers.softmax == 0
    assert summary.unfused_attention == ()
    is_causal = case.family in DECODERS or case.role is Model.RERANKER
    assert summary.layers.rotary == (2 * LAYERS if is_causal or case.family == "modernbert" else 0)
    # LayerNormalization stays one layer of TensorRT's network, RMSNormalization does not.
    assert summary.layers.normalization == (0 if is_causal else 2 * LAYERS + 1)


@pytest.mark.parametrize("precision", TYPED)
def test_weights_are_stored_in_the_type_that_they_are_multiplied_in(case: Case, precision: Precision) -> None:
    graph = onnx.load(case.graphs[precision], load_external_data=False).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    matrices = [types[node.input[1]] for node in graph.node if node.op_type == "MatMul"]
    tables = [types[node.input[0]] for node in graph.node if node.op_type == "Gather" and node.input[0] in types]
    if case.family == PROJECTORS:
        assert matrices.pop() == TensorProto.FLOAT  # P_out stands behind the last hidden state
    assert len(matrices) >= 4 * LAYERS
    assert tables
    assert {*matrices, *tables} == {ELEMENT[precision]}


@pytest.mark.parametrize("precision", TYPED)
def test_keys_and_values_are_not_repeated(case: Case, precision: Precision) -> None:
    """Grouped-query heads stay as few as the weights make them, up to the operator that attends."""
    backbone = case.model.encoder if case.role is Model.ENCODER else case.model.reranker
    heads = backbone.config.num_attention_heads
    groups = getattr(backbone.config, "num_key_value_heads", heads)
    graph = onnx.load(case.graphs[precision], load_external_data=False)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True).graph.value_info
    }
    attentions = [node for node in graph.graph.node if node.op_type == "Attention"]
    assert len(attentions) == LAYERS
    for node in attentions:
        assert [shapes[name][1] for name in node.input[:3]] == [heads, groups, groups]


@pytest.mark.parametrize(
    ("precision", "capabilities"),
    [
        (Precision.BF16, CAPABILITIES[-1:]),
        *(pytest.param(precision, CAPABILITIES, marks=pytest.mark.full) for precision in TYPED),
    ],
    ids=lambda value: value.value if isinstance(value, Precision) else "-".join(map(str, value)),
)
def test_plans_are_built_with_attention_as_one_kernel(
    rtx: EngineBuilder, case: Case, precision: Precision, capabilities: tuple[int, ...], tmp_path: Path
) -> None:
    """One plan of each graph; with ``--full`` in every precision for two generations of GPU."""
    graph = case.graphs[precision]
    shapes = default_profiles(case.model.spec, case.layout).all_shapes(case.role, case.model.spec)
    built = rtx.build_each(graph, shapes[:1], {sm: tmp_path / f"model.sm{sm}.plan" for sm in capabilities})
    assert [plan.compute_capability for plan in built] == list(capabilities)
    for plan in built:
        assert plan.fused_attention is (precision is not Precision.FP32)  # there are kernels for 16-bit types alone
        assert plan.path.stat().st_size == plan.bytes
