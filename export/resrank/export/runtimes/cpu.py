"""``--runtime cpu``: OpenVINO or ONNX Runtime on the fp32 graph, whichever passes and is fastest on this machine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from resrank.core.checkpoint import CheckpointSpec, encoder_identity
from resrank.core.errors import ExportError
from resrank.core.names import Model
from resrank.core.prompt import PromptLayout
from resrank.export.export_options import ExportOptions
from resrank.export.graph_files import graph_digests, graph_files
from resrank.export.int8_rankings import INT8_RANKINGS
from resrank.export.manifest import EngineFacts
from resrank.export.onnx_graphs import OPSET, export_encoder, export_reranker
from resrank.export.repository import EngineModel
from resrank.export.runtimes.base import ENGINE_MODELS, EngineChoice, RuntimeExport, Subject, parity_facts
from resrank.export.runtimes.measurement import measure, parity_failure
from resrank.serving.engines import load_engine
from resrank.serving.engines.base import EngineError, EngineOptions, Precision

_BYTES_PER_WEIGHT = 4


class CpuRuntime:
    """An :class:`~resrank.export.runtimes.base.ExportRuntime`."""

    def __init__(self, options: ExportOptions) -> None:
        self._options = options

    def prepare(self, checkpoint: Path, spec: CheckpointSpec, layout: PromptLayout) -> None:
        """See the protocol: a CPU takes whatever the checkpoint allows."""

    def bytes_needed(self, parameters: int) -> int:
        """See the protocol: the fp32 graphs."""
        return parameters * _BYTES_PER_WEIGHT

    def export(self, subject: Subject) -> RuntimeExport:
        """See the protocol."""
        subject.notify("Exporting the encoder to ONNX")
        graphs = {Model.ENCODER: export_encoder(subject.model, subject.scratch / Model.ENCODER)}
        subject.notify("Exporting the reranker to ONNX")
        graphs[Model.RERANKER] = export_reranker(subject.model, subject.scratch / Model.RERANKER)
        tried: list[EngineChoice] = []
        refused: list[str] = []
        for model in ENGINE_MODELS:
            for options in self._options.cpu_choices(model):
                if self._rounds_for_nothing(model, options, subject.model.spec):
                    continue
                subject.notify(f"Checking the {model.value} on {options.kind.value} {options.precision.value}")
                try:
                    tried.append(measure(subject.gate, model, load_engine(graphs[model], options), options))
                except EngineError as error:
                    refused.append(str(error))
        chosen = {model: _fastest(model, tried, refused) for model in ENGINE_MODELS}
        models = {model: _engine_model(graphs[model], choice) for model, choice in chosen.items()}
        return RuntimeExport(models, chosen, tuple(tried), refused=tuple(dict.fromkeys(refused)))

    def _rounds_for_nothing(self, model: Model, options: EngineOptions, spec: CheckpointSpec) -> bool:
        """Whether a precision is left out, unless it was asked for.

        bf16 is for a decoder that reads slots alone. It takes a millisecond in fp32 too, and what it reads are cosines
        whose differences stand in the third digit, where bf16 rounds: scores then depend on how many lists an engine
        takes at once.

        int8 is for an encoder of which nobody has measured what it does to rankings: random texts, which are all that
        the gate has, do not tell.
        """
        if options.precision is self._options.precision:
            return False
        if options.precision is Precision.INT8:
            measured = INT8_RANKINGS.get(encoder_identity(spec))
            return measured is None or not measured.passed
        return model is Model.RERANKER and spec.reranker.prompt is None and options.precision is Precision.BF16


def _engine_model(onnx: Path, choice: EngineChoice) -> EngineModel:
    options = choice.parity.options
    facts = EngineFacts(
        engine=options.kind,
        precision=options.precision,
        threads=options.threads,
        opset=OPSET,
        onnx_sha256=graph_digests(onnx),
        parity=parity_facts(choice),
        plans={},
        profiles=(),
    )
    return EngineModel(facts, graph_files(onnx), choice.row_ms)


def _fastest(model: Model, tried: Iterable[EngineChoice], refused: Iterable[str]) -> EngineChoice:
    of_model = [choice for choice in tried if choice.parity.model is model]
    if not of_model:
        raise ExportError(f"no engine can run the {model.value} here: {'; '.join(dict.fromkeys(refused))}")
    passing = [choice for choice in of_model if choice.parity.passed]
    if not passing:
        raise parity_failure(model, of_model)
    return min(passing, key=lambda choice: math.inf if choice.latency_ms is None else choice.latency_ms)
