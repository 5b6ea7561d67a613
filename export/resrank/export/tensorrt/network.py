"""TensorRT's network definition: what its parser made of an exported graph, before anything is built."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from resrank.core.errors import ExportError
from resrank.export.tensorrt.callbacks import ErrorLines, one_line

_BETWEEN = frozenset(
    ("ELEMENTWISE", "SELECT", "SCALE", "CAST", "SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE", "SLICE", "UNARY")
)
"""Layers that scale, mask, convert or reshape, and so may stand between attention's products and its softmax."""

_PRECISION_CAST = "CAST of precision"
_FLOATING = frozenset(("FLOAT", "HALF", "BF16"))
_PRODUCTS = frozenset(("MATRIX_MULTIPLY", "EINSUM"))
_ASSERTION = re.compile(r'Assertion failed: .*?(?:&& "(?P<quoted>[^"]*)"|: (?P<plain>.*))', re.DOTALL)
_QUOTED = re.compile(r'\w+ && "(?P<quoted>[^"]*)"')


@dataclass(frozen=True)
class LayerSummary:
    """How many layers of each kind a network has.

    Attributes:
        attention: Whole attentions, one layer each.
        normalization: LayerNorm. RMSNorm is none of TensorRT's layers: its parser (1.7) writes it as element-wise
            layers and a mean, in the operator's ``stash_type``, and the builder fuses those.
        rotary: Rotary embeddings.
        matmul: Matrix products outside of attention layers.
        softmax: Softmaxes outside of attention layers.
        cast: Conversions from one floating-point type to another; those of shapes and masks are among the others.
        other: All others, by TensorRT's name in lower case.
    """

    attention: int
    normalization: int
    rotary: int
    matmul: int
    softmax: int
    cast: int
    other: Mapping[str, int]

    @property
    def total(self) -> int:
        """Layers altogether."""
        named = self.attention + self.normalization + self.rotary + self.matmul + self.softmax + self.cast
        return named + sum(self.other.values())


@dataclass(frozen=True)
class NetworkSummary:
    """What TensorRT's parser makes of a graph.

    Attributes:
        layers: Counts.
        unfused_attention: Chains of product, softmax and product that are no attention layer, by the names of the
            three layers. Empty is what export aims at.
    """

    layers: LayerSummary
    unfused_attention: tuple[str, ...]


def summarize(network: Any) -> LayerSummary:
    """Counts the layers of an ``INetworkDefinition``."""
    counts = Counter(_PRECISION_CAST if _changes_precision(layer) else layer.type.name for layer in layers_of(network))
    counts.pop("ATTENTION_INPUT", None)  # the other end of ATTENTION_OUTPUT
    named = {
        "attention": "ATTENTION_OUTPUT",
        "normalization": "NORMALIZATION",
        "rotary": "ROTARY_EMBEDDING",
        "matmul": "MATRIX_MULTIPLY",
        "softmax": "SOFTMAX",
        "cast": _PRECISION_CAST,
    }
    fields = {field: counts.pop(name, 0) for field, name in named.items()}
    return LayerSummary(**fields, other={name.lower(): count for name, count in sorted(counts.items())})


def unfused_attention(network: Any) -> tuple[str, ...]:
    """Finds attention that is not one layer: a product whose result reaches a softmax that reaches a product.

    Args:
        network: ``INetworkDefinition``.

    Returns:
        The names of each chain's three layers, for instance ``/q_k -> /softmax -> /probabilities_v``.
    """
    layers = list(layers_of(network))
    producers = {tensor.name: layer for layer in layers for tensor in _outputs(layer)}
    consumers: dict[str, list[Any]] = {}
    for layer in layers:
        for tensor in _inputs(layer):
            consumers.setdefault(tensor.name, []).append(layer)

    def before(layer: Any) -> Iterable[Any]:
        return (producers[tensor.name] for tensor in _inputs(layer) if tensor.name in producers)

    def after(layer: Any) -> Iterable[Any]:
        return (consumer for tensor in _outputs(layer) for consumer in consumers.get(tensor.name, ()))

    chains = []
    for softmax in (layer for layer in layers if layer.type.name == "SOFTMAX"):
        scores, values = _first_product(softmax, before), _first_product(softmax, after)
        if scores is not None and values is not None:
            chains.append(f"{scores.name} -> {softmax.name} -> {values.name}")
    return tuple(chains)


def _first_product(start: Any, neighbours: Any) -> Any | None:
    """The nearest matrix product that only layers of _BETWEEN separate from a softmax."""
    seen: set[str] = set()
    queue = list(neighbours(start))
    while queue:
        layer = queue.pop(0)
        if layer.name in seen:
            continue
        seen.add(layer.name)
        if layer.type.name in _PRODUCTS:
            return layer
        if layer.type.name in _BETWEEN:
            queue.extend(neighbours(layer))
    return None


def _changes_precision(layer: Any) -> bool:
    if layer.type.name != "CAST":
        return False
    types = {layer.get_input(0).dtype.name, layer.get_output(0).dtype.name}
    return len(types) == 2 and types <= _FLOATING


def layers_of(network: Any) -> Iterator[Any]:
    """The layers of an ``INetworkDefinition``, each as a plain ``ILayer``."""
    return (network.get_layer(index) for index in range(network.num_layers))


def _inputs(layer: Any) -> Iterator[Any]:
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return (tensor for tensor in tensors if tensor is not None)


def _outputs(layer: Any) -> Iterator[Any]:
    return (layer.get_output(index) for index in range(layer.num_outputs))


def parse(parser: Any, network: Any, path: Path, errors: ErrorLines, builder: str) -> None:
    """Fills a network definition from a graph; external data is found beside it, so graphs may exceed 2 GiB.

    Args:
        parser: ``OnnxParser`` on the network.
        network: ``INetworkDefinition``.
        path: ``model.onnx``.
        errors: Where the parser's logger writes.
        builder: The flavour and version for messages.

    Raises:
        ExportError: The file is missing, is no whole graph, lacks its external data, or has an operator or a type
            that TensorRT does not take; the message names the node.
    """
    if not path.is_file():
        raise ExportError(f"{path}: no such file; export the graph first")
    # An empty or foreign file parses without an error, into nothing.
    if parser.parse_from_file(str(path)) and network.num_outputs and not parser.num_errors:
        return
    if not parser.num_errors or parser.get_error(0).code().name == "MODEL_DESERIALIZE_FAILED":
        size = path.stat().st_size
        raise ExportError(f"{path}: {size} bytes that are no whole ONNX graph; export it again")
    for line in errors.lines:
        if "external weights" in line or "Failed to open file" in line:
            what = one_line(line.partition(": ")[2])
            raise ExportError(f"{path}: its external data is missing or cut short ({what}); export it again")
    failure = parser.get_error(0)
    node = ""
    if failure.node() >= 0:
        types = _input_types(path, failure.node())
        node = f" at node '{failure.node_name()}' ({failure.node_operator()}{f' of {types}' if types else ''})"
    raise ExportError(
        f"{path}: {builder} does not take the graph{node}: {_reason(failure)}; export with --runtime torch or cpu, or "
        "choose a backbone of a supported family"
    )


def _reason(failure: Any) -> str:
    """The parser's words without its C++."""
    words = one_line(failure.desc())
    match = _ASSERTION.fullmatch(words) or _QUOTED.fullmatch(words)
    if match is not None:
        words = next(group for group in match.groups() if group is not None)
    return "it has no such operator" if words == "false" else words.rstrip(".")


def _input_types(path: Path, index: int) -> str:
    """Element types of a node's inputs as far as the file tells them, in the order of the inputs."""
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (DecodeError, ValueError, OSError):
        return ""
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    if index >= len(graph.node):
        return ""
    known = (types.get(name, 0) for name in graph.node[index].input)
    return ", ".join(onnx.TensorProto.DataType.Name(element) for element in known if element)
