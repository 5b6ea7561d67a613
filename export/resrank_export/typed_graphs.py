"""Strongly typed ONNX graphs for TensorRT: the same model as the CPU engines', with each operator's precision decided.

TensorRT 11 takes precision from the graph alone. Products and their weights, attention's operands and embedding tables
are in the wished type; normalisations, softmax, rotary tables, activations, the residual stream, pooling and everything
after the last hidden state are fp32 (see :mod:`resrank_export.typed_precision`).
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from resrank.engines.base import Precision
from resrank.errors import ExportError
from resrank.modeling import ResRankModel
from resrank.names import ENGINE_FILE
from resrank_export.onnx_graphs import (
    EncoderGraph,
    GraphSample,
    RerankerGraph,
    check_dynamic_axes,
    encoder_sample,
    reranker_sample,
    trace,
)
from resrank_export.typed_precision import lower
from resrank_export.typed_structure import tidy

TYPED_OPSET = 23
"""The first with Attention, RMSNormalization and RotaryEmbedding as operators, which TensorRT takes as layers."""


def export_typed_encoder(model: ResRankModel, precision: Precision, folder: Path) -> Path:
    """Writes the encoder's strongly typed graph.

    Args:
        model: In fp32 and evaluation mode; its weights are converted one by one as they are written.
        precision: What products are computed in.
        folder: Where ``model.onnx`` and ``model.onnx.data`` go; created when missing.

    Returns:
        The path of ``model.onnx``.

    Raises:
        ExportError: torch cannot express the backbone, or it cannot be typed: the message names the operator.
    """
    return _export(model, EncoderGraph(model), encoder_sample(), precision, folder)


def export_typed_reranker(model: ResRankModel, precision: Precision, folder: Path) -> Path:
    """Writes the reranker's strongly typed graph; arguments, result and errors as :func:`export_typed_encoder`."""
    return _export(model, RerankerGraph(model), reranker_sample(model.spec.encoder.embedding_dim), precision, folder)


def _export(
    model: ResRankModel,
    graph: EncoderGraph | RerankerGraph,
    sample: GraphSample,
    precision: Precision,
    folder: Path,
) -> Path:
    program = trace(model, graph, sample, TYPED_OPSET)
    typed = program.model
    try:
        tidy(typed)
        if precision is not Precision.FP32:
            lower(typed, precision)
    except ExportError as error:
        raise ExportError(f"{type(graph).__name__}: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ENGINE_FILE
    ir.save(typed, path, external_data=f"{ENGINE_FILE}.data")
    check_dynamic_axes(path, sample)
    return path
