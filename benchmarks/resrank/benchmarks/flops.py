"""How much arithmetic one row is to an engine, counted from its exported graph."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import onnx

from resrank.benchmarks.deployment import Deployment
from resrank.benchmarks.measurement import BenchmarkError
from resrank.core.checkpoint import ENCODER_DIR, RERANKER_DIR
from resrank.core.names import Model


@dataclass(frozen=True)
class GraphSize:
    """What the count of operations needs.

    Attributes:
        parameters: Elements of all weight matrices of layers and projectors; the embedding table is looked up
            and not multiplied with, and there are no logits.
        layers: How many.
        hidden_size: h.
    """

    parameters: int
    layers: int
    hidden_size: int

    def flops(self, positions: int) -> int:
        """Floating-point operations of one sequence: a multiplication and an addition for each weight and position.

        Attention's two products (queries with keys, weights with values) add 2 * S^2 * h each to every layer; that
        half of the first is masked in a causal decoder is not deducted.

        Args:
            positions: S, the sequence's length.
        """
        return 2 * self.parameters * positions + 4 * positions**2 * self.hidden_size * self.layers


def reranker_size(deployment: Deployment) -> GraphSize:
    """Reads the sizes off the repository's graph and the checkpoint's configuration.

    Raises:
        BenchmarkError: The configuration does not tell its number of layers.
    """
    return _size(deployment, Model.RERANKER, RERANKER_DIR, deployment.spec.reranker.hidden_size)


def encoder_size(deployment: Deployment) -> GraphSize:
    """The encoder's; errors as :func:`reranker_size`."""
    return _size(deployment, Model.ENCODER, ENCODER_DIR, deployment.spec.encoder.embedding_dim)


def _size(deployment: Deployment, model: Model, part: str, width: int) -> GraphSize:
    path = deployment.checkpoint / part / "config.json"
    layers = json.loads(path.read_text(encoding="utf-8")).get("num_hidden_layers")
    if not isinstance(layers, int):
        raise BenchmarkError(f"{path}: num_hidden_layers is needed to count operations, found {layers!r}")
    return GraphSize(matrix_parameters(deployment.graph(model)), layers, width)


def matrix_parameters(graph: Path) -> int:
    """Elements of all constant matrices that a graph's MatMul nodes multiply with.

    Args:
        graph: ``model.onnx``; weights in external data are not read.
    """
    model = onnx.load(graph, load_external_data=False).graph
    matrices = {tensor.name: tensor.dims[0] * tensor.dims[1] for tensor in model.initializer if len(tensor.dims) == 2}
    return sum(matrices.get(name, 0) for node in model.node if node.op_type == "MatMul" for name in node.input)
