"""SmolLM2-135M as a reranker at its real size, with random weights: what it costs, and that it builds.

The analytic count is of the architecture, from ``config.json`` alone: every weight matrix once for each position,
attention's two products, the projectors for the candidates. An exporter that repeats keys and values, keeps the
language-model head, or stores a table twice does not stay within a fiftieth of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel, LlamaConfig

from resrank.core.checkpoint import CheckpointSpec, EncoderSpec, FusionSpec, Pooling, Projector, RerankerSpec
from resrank.core.names import Model
from resrank.core.prompt import PromptLayout
from resrank.export.initialize import CHAT_PROMPT
from resrank.export.profiles import default_profiles
from resrank.export.tensorrt import EngineBuilder
from resrank.export.typed_graphs import TypedGraph
from resrank.model.modeling import ResRankModel
from resrank.serving.engines import Precision
from support.backbone_sizes import Backbone
from support.graph_cost import graph_cost

pytestmark = pytest.mark.full

BATCH, QUERY_TOKENS, CANDIDATES = 2, 24, 100
BYTES = 2  # of a weight in bf16
CLOSE = 1.02


CONFIG = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    rope_theta=100000.0,
    tie_word_embeddings=True,
)
"""SmolLM2-135M-Instruct's."""


@dataclass(frozen=True)
class Default:
    spec: CheckpointSpec
    layout: PromptLayout
    graph: Path


@dataclass(frozen=True)
class Reranker(Backbone):
    """The decoder and the projectors around it."""

    embedding: int

    @classmethod
    def read(cls, spec: CheckpointSpec) -> Reranker:
        return cls(
            vocabulary=CONFIG.vocab_size,
            hidden=CONFIG.hidden_size,
            layers=CONFIG.num_hidden_layers,
            heads=CONFIG.num_attention_heads,
            key_heads=CONFIG.num_key_value_heads,
            head_size=CONFIG.head_dim,
            width=CONFIG.intermediate_size,
            embedding=spec.encoder.embedding_dim,
        )

    @property
    def projector(self) -> int:
        """Elements of either."""
        return self.hidden * self.embedding

    def flops(self, batch: int, positions: int, candidates: int) -> int:
        products = 2 * self.body * positions
        attention = self.layers * 2 * 2 * positions**2 * self.heads * self.head_size
        projectors = 2 * self.projector * (candidates + candidates + 1)
        return batch * (products + attention + projectors)

    def weight_bytes(self, size: int) -> int:
        """P_out stands behind the last hidden state, so it and the norms are fp32 whatever the precision."""
        return size * (self.table + self.body + self.projector) + 4 * (self.norms + self.projector)

    def attention_bytes(self, batch: int, positions: int, size: int) -> int:
        """Queries and results of all heads, keys and values of the fewer ones that the weights make."""
        return size * self.layers * batch * positions * self.head_size * (2 * self.heads + 2 * self.key_heads)


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Default:
    spec = CheckpointSpec(
        name="sized",
        encoder=EncoderSpec(
            source="random", sha256="0" * 64, embedding_dim=384, pooling=Pooling.MEAN, max_passage_tokens=256,
            max_query_tokens=128,
        ),
        reranker=RerankerSpec(
            source="random", sha256="0" * 64, hidden_size=CONFIG.hidden_size, max_query_tokens=128, max_passages=128,
            prompt=CHAT_PROMPT, eos_token="<|im_end|>",
        ),
        fusion=FusionSpec(projector=Projector.LINEAR, input_scale=3.2, residual_gate=0.06, query_residual=True),
    )  # fmt: skip
    d, h = spec.encoder.embedding_dim, spec.reranker.hidden_size
    encoder = BertModel(BertConfig(hidden_size=d, num_hidden_layers=1, vocab_size=8, intermediate_size=8))
    reranker = AutoModel.from_config(CONFIG)
    for name, weight in reranker.named_parameters():
        if "norm" in name:  # all are 1 at first, and export stores equal constants once
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model = ResRankModel(spec, encoder, reranker, torch.randn(h, d), torch.randn(d, h)).eval()
    graph = TypedGraph.trace(model, Model.RERANKER).write(Precision.BF16, tmp_path_factory.mktemp("default"))
    # As many ids before the query, before the passages and behind them as SmolLM2's tokenizer makes of the prompt.
    layout = PromptLayout(tuple([1] * 22), tuple([1] * 5), tuple([1] * 6), eos_id=2, placeholder_id=2)
    return Default(spec, layout, graph)


def test_the_graph_costs_what_the_architecture_does(default: Default) -> None:
    positions = default.layout.length(QUERY_TOKENS, CANDIDATES)
    sizes = {"batch": BATCH, "sequence": positions, "candidates": CANDIDATES}
    graph, architecture = default.graph, Reranker.read(default.spec)
    found = graph_cost(graph, sizes)
    flops = architecture.flops(BATCH, positions, CANDIDATES)
    assert flops <= found.products
    assert found.products + found.elementwise <= CLOSE * flops
    weights = architecture.weight_bytes(BYTES)
    assert weights <= found.weight_bytes <= CLOSE * weights
    stored = sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*"))
    assert stored <= CLOSE * weights
    assert found.attention_bytes == architecture.attention_bytes(BATCH, positions, BYTES)
    # Logits would be the largest tensor by far: a vocabulary for each position.
    assert found.largest <= BATCH * positions * architecture.width


def test_it_builds_in_bf16_with_every_attention_one_kernel(
    rtx: EngineBuilder, default: Default, tmp_path: Path
) -> None:
    shapes = default_profiles(default.spec, default.layout).all_shapes(Model.RERANKER, default.spec)
    (plan,) = rtx.build_each(default.graph, shapes[:1], {89: tmp_path / "model.plan"})
    assert plan.layers.attention == Reranker.read(default.spec).layers
    assert plan.layers.softmax == 0
    assert plan.fused_attention
