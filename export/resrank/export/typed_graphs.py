"""Strongly typed ONNX graphs for TensorRT: the same model as the CPU engines', with each operator's precision decided.

TensorRT 11 takes precision from the graph alone. Products and their weights, attention's operands and embedding tables
are in the wished type; normalisations, softmax, rotary tables, activations, the residual stream, pooling and everything
after the last hidden state are fp32 (see :mod:`resrank.export.typed_precision`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import onnx_ir as ir

from resrank.core.errors import ExportError
from resrank.core.names import ENGINE_FILE, Model
from resrank.export.onnx_graphs import (
    EncoderGraph,
    GraphSample,
    RerankerGraph,
    check_dynamic_axes,
    encoder_sample,
    reranker_sample,
    trace,
)
from resrank.export.typed_check import refuse_wrong_types
from resrank.export.typed_precision import lower
from resrank.export.typed_structure import tidy
from resrank.model.modeling import ResRankModel
from resrank.serving.engines.base import Precision

TYPED_OPSET = 23
"""The first with Attention, RMSNormalization and RotaryEmbedding as operators, which TensorRT takes as layers."""


class TypedGraph:
    """One model's graph, traced once, of which every precision is written.

    It shares the torch model's weights: they are converted one by one as they are written, and never copied as a whole.
    """

    def __init__(self, name: Model, graph: ir.Model, sample: GraphSample) -> None:
        """Takes a traced graph.

        Args:
            name: ``ENCODER`` or ``RERANKER``.
            graph: In fp32, tidied.
            sample: What it was traced with.
        """
        self._name = name
        self._graph = graph
        self._sample = sample

    @classmethod
    def trace(cls, model: ResRankModel, name: Model) -> Self:
        """Turns one half of a checkpoint into a graph.

        Args:
            model: In fp32 and evaluation mode.
            name: ``ENCODER`` or ``RERANKER``.

        Raises:
            ExportError: torch cannot express the backbone; the message names the operator.
        """
        if name is Model.ENCODER:
            sample = encoder_sample()
            program = trace(model, EncoderGraph(model), sample, TYPED_OPSET)
        else:
            sample = reranker_sample(model.spec)
            program = trace(model, RerankerGraph(model), sample, TYPED_OPSET)
        try:
            tidy(program.model)
        except ExportError as error:
            raise ExportError(f"{name.value}: {error}") from error
        return cls(name, program.model, sample)

    def write(self, precision: Precision, folder: Path) -> Path:
        """Writes the graph in one precision.

        Args:
            precision: What products are computed in.
            folder: Where ``model.onnx`` and ``model.onnx.data`` go; created when missing.

        Returns:
            The path of ``model.onnx``.

        Raises:
            ExportError: The backbone cannot be typed: the message names the operator.
        """
        typed = self._graph.clone()
        try:
            if precision is not Precision.FP32:
                lower(typed, precision)
        except ExportError as error:
            raise ExportError(f"{self._name.value}: {error}") from error
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ENGINE_FILE
        ir.save(typed, path, external_data=f"{ENGINE_FILE}.data")
        check_dynamic_axes(path, self._sample)
        refuse_wrong_types(path, precision)
        return path
