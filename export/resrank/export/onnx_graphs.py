"""Torch model to ONNX: the encoder and the reranker as the two graphs that engines run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor as TorchTensor
from torch import nn
from torch.export import Dim

from resrank.core.checkpoint import CheckpointSpec
from resrank.core.errors import ExportError
from resrank.core.names import ENGINE_FILE, Tensor
from resrank.core.prompt import PromptLayout
from resrank.core.telemetry import no_telemetry
from resrank.export.rerank_chain import reranker_inputs, reranker_outputs
from resrank.model.encoder_attention import has_local_layers
from resrank.model.modeling import EXPORT_ATTENTION, PRODUCT_ATTENTION, ResRankModel

OPSET = 18
"""The CPU engines' opset. From 23 on ONNX has Attention as one operator, but OpenVINO 2026.4 refuses the grouped-query
form of it (`key_input_correctness`); decomposed, both engines fuse it themselves."""

_ATTENTION_OPSET = 23
"""The first with Attention as an operator."""


class EncoderGraph(nn.Module):
    """INPUT_IDS, ATTENTION_MASK to EMBEDDING."""

    def __init__(self, model: ResRankModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: TorchTensor, attention_mask: TorchTensor) -> TorchTensor:
        """See :meth:`ResRankModel.encode`."""
        return self.model.encode(input_ids, attention_mask)


class RerankerGraph(nn.Module):
    """The inputs to the outputs that :mod:`resrank.export.rerank_chain` names for the checkpoint."""

    def __init__(self, model: ResRankModel) -> None:
        super().__init__()
        self.model = model
        self.names = reranker_inputs(model.spec)

    def forward(self, *inputs: TorchTensor) -> tuple[TorchTensor, ...]:
        """See :meth:`ResRankModel.outputs`."""
        given = dict(zip(self.names, inputs, strict=True))
        found = self.model.outputs(
            given[Tensor.INPUT_IDS],
            given[Tensor.PASSAGE_POSITIONS],
            given.get(Tensor.LAST_POSITION),
            given.get(Tensor.CANDIDATES),
            given.get(Tensor.RELATIONS),
        )
        return tuple(part for part in found if part is not None)


@dataclass(frozen=True)
class GraphSample:
    """Example inputs for tracing and the axes that may vary.

    Attributes:
        inputs: Tensor name to example, in the order of the module's arguments.
        axes: Tensor name to axis index to the axis's name; the batch, lengths and counts are all dynamic.
        outputs: Names of the outputs.
    """

    inputs: Mapping[Tensor, TorchTensor]
    axes: Mapping[Tensor, Mapping[int, str]]
    outputs: tuple[Tensor, ...]


def encoder_sample() -> GraphSample:
    """Two rows of unequal length: dimensions of 0 or 1 in a sample would be frozen into the graph."""
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    return GraphSample(
        inputs={Tensor.INPUT_IDS: torch.full((2, 7), 1, dtype=torch.int64), Tensor.ATTENTION_MASK: mask},
        axes={Tensor.INPUT_IDS: {0: "batch", 1: "tokens"}, Tensor.ATTENTION_MASK: {0: "batch", 1: "tokens"}},
        outputs=(Tensor.EMBEDDING,),
    )


def reranker_sample(spec: CheckpointSpec) -> GraphSample:
    """Two rows, unequal queries and candidate counts."""
    layout = PromptLayout(before_query=(1, 1), before_passages=(1,), after_passages=(), eos_id=1, placeholder_id=0)
    batch = layout.batch([[1, 1, 1, 1], [1, 1]], [5, 3])
    samples = {
        Tensor.INPUT_IDS: torch.from_numpy(batch.input_ids),
        Tensor.PASSAGE_POSITIONS: torch.from_numpy(batch.passage_positions),
        Tensor.LAST_POSITION: torch.from_numpy(batch.last_position),
        Tensor.CANDIDATES: torch.ones(2, 5, spec.encoder.embedding_dim, dtype=torch.float16),
        Tensor.RELATIONS: torch.ones(2, 5, spec.reranker.slots.relation_width),
    }
    axes = {
        Tensor.INPUT_IDS: {0: "batch", 1: "sequence"},
        Tensor.PASSAGE_POSITIONS: {0: "batch", 1: "candidates"},
        Tensor.LAST_POSITION: {0: "batch"},
        Tensor.CANDIDATES: {0: "batch", 1: "candidates"},
        Tensor.RELATIONS: {0: "batch", 1: "candidates"},
    }
    names = reranker_inputs(spec)
    return GraphSample(
        inputs={name: samples[name] for name in names},
        axes={name: axes[name] for name in names},
        outputs=reranker_outputs(spec),
    )


def refuse_sliding_windows(model: ResRankModel, layout: PromptLayout) -> None:
    """Refuses backbones whose attention would slide within the checkpoint's limits.

    The graphs are exported without masks, so every position sees all before it (see
    :func:`resrank.model.modeling.maskless_attention`); only the local layers of
    :mod:`resrank.model.encoder_attention` get a mask. The parity gate draws typical lengths and need not reach the
    window.

    Raises:
        ExportError: A window is shorter than the longest row; the message names both.
    """
    encoder, reranker = model.spec.encoder, model.spec.reranker
    for name, backbone, longest in (
        ("encoder", model.encoder, max(encoder.max_passage_tokens, encoder.max_query_tokens)),
        ("reranker", model.reranker, layout.length(reranker.max_query_tokens, reranker.max_passages)),
    ):
        window = getattr(backbone.config, "sliding_window", None)
        if window is not None and window < longest and not has_local_layers(backbone.config):
            raise ExportError(
                f"{name}: its attention slides over {window} positions, but the checkpoint's limits allow rows of "
                f"{longest}; lower them"
            )


def export_encoder(model: ResRankModel, folder: Path) -> Path:
    """Writes the encoder's graph.

    Args:
        model: In fp32 and evaluation mode.
        folder: Where ``model.onnx`` and its external data go; created when missing.

    Returns:
        The path of ``model.onnx``.

    Raises:
        ExportError: torch cannot express the backbone in ONNX.
    """
    return _export(model, EncoderGraph(model), encoder_sample(), folder)


def export_reranker(model: ResRankModel, folder: Path) -> Path:
    """Writes the reranker's graph; arguments, result and errors as :func:`export_encoder`."""
    return _export(model, RerankerGraph(model), reranker_sample(model.spec), folder)


def _export(model: ResRankModel, graph: nn.Module, sample: GraphSample, folder: Path) -> Path:
    program = trace(model, graph, sample, OPSET)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ENGINE_FILE
    program.save(path, external_data=True)
    check_dynamic_axes(path, sample)
    return path


def trace(model: ResRankModel, graph: nn.Module, sample: GraphSample, opset: int) -> torch.onnx.ONNXProgram:
    """Turns one of the two modules into ONNX, in memory; its initializers share the torch model's weights.

    Args:
        model: In fp32 and evaluation mode.
        graph: :class:`EncoderGraph` or :class:`RerankerGraph` around it.
        sample: What to trace with.
        opset: ONNX operator set.

    Raises:
        ExportError: torch cannot express the backbone in ONNX.
    """
    dims = {name: Dim(name) for axes in sample.axes.values() for name in axes.values()}
    shapes = tuple({axis: dims[name] for axis, name in sample.axes[tensor].items()} for tensor in sample.inputs)
    try:
        attention = PRODUCT_ATTENTION if opset < _ATTENTION_OPSET else EXPORT_ATTENTION
        with model.exporting(attention), torch.no_grad(), warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript"):
            # The exporter warns that equal axes share one name, which is what is wanted.
            warnings.simplefilter("ignore")
            no_telemetry()  # the exporter looks whether ONNX Runtime can be imported
            program = torch.onnx.export(
                graph.eval(),
                tuple(sample.inputs.values()),
                dynamo=True,
                opset_version=opset,
                input_names=[tensor.value for tensor in sample.inputs],
                output_names=[tensor.value for tensor in sample.outputs],
                dynamic_shapes=(shapes,) if isinstance(graph, RerankerGraph) else shapes,  # of *inputs as one
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise ExportError(f"{type(graph).__name__}: torch cannot export this backbone: {error}") from error
    if program is None:
        raise ExportError(f"{type(graph).__name__}: torch.onnx.export returned no program")
    return program


def check_dynamic_axes(path: Path, sample: GraphSample) -> None:
    """Refuses a graph in which an axis that should vary was frozen to the sample's size.

    Args:
        path: ``model.onnx``.
        sample: What it was traced with.

    Raises:
        ExportError: An axis is fixed; the message names tensor and axis.
    """
    graph = onnx.load(path, load_external_data=False).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
    for tensor, axes in sample.axes.items():
        if tensor.value not in shapes:
            raise ExportError(f"{path}: input {tensor.value} is missing from the graph")
        for axis, name in axes.items():
            if not shapes[tensor.value][axis].dim_param:
                size = shapes[tensor.value][axis].dim_value
                raise ExportError(f"{path}: axis {axis} ({name}) of {tensor.value} was frozen to {size}")


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Raises the level of chatty loggers for the time of an export."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
