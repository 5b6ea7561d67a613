"""``--runtime tensorrt`` and ``tensorrt-rtx``: typed graphs, and the plans that TensorRT builds from them.

Production TensorRT builds on the GPU that serves: the repository gets the typed graphs and a script that builds them
there. TensorRT for RTX builds on any machine, which proves that the graphs parse and build; nothing serves its plans.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resrank.core.checkpoint import ENCODER_DIR, RERANKER_DIR, CheckpointSpec
from resrank.core.errors import ExportError
from resrank.core.names import Model
from resrank.core.prompt import PromptLayout
from resrank.export.build_script import build_script
from resrank.export.export_options import ExportOptions
from resrank.export.families import require_supported
from resrank.export.gpu_serving import GpuServing
from resrank.export.graph_files import graph_digests, graph_files
from resrank.export.manifest import AxisRange, EngineFacts, PlanFacts, Runtime, capability_name, plan_file
from resrank.export.repository import EngineModel
from resrank.export.runtimes.base import ENGINE_MODELS, EngineChoice, RuntimeExport, Subject, parity_facts
from resrank.export.runtimes.measurement import parity_failure
from resrank.export.runtimes.shapes import gpu_serving
from resrank.export.tensorrt import BuiltPlan, EngineBuilder
from resrank.export.typed_graphs import TYPED_OPSET, TypedGraph
from resrank.export.typed_parity import check_typed
from resrank.serving.engines import EngineKind, Precision

_KINDS = {Runtime.TENSORRT: EngineKind.TENSORRT, Runtime.TENSORRT_RTX: EngineKind.TENSORRT_RTX}
_USUAL_PRECISIONS = (Precision.BF16, Precision.FP32)
"""What ``auto`` tries, fastest first. fp16 only when asked for: its range is too small for some families, and whether
it overflows depends on the text."""

_BYTES_PER_WEIGHT = {Precision.FP32: 4, Precision.BF16: 2, Precision.FP16: 2}


@dataclass(frozen=True)
class _Graph:
    """A typed graph that passed the gate."""

    onnx: Path
    choice: EngineChoice

    @property
    def precision(self) -> Precision:
        return self.choice.parity.options.precision


class PlanRuntime:
    """An :class:`~resrank.export.runtimes.base.ExportRuntime` of either flavour."""

    def __init__(self, options: ExportOptions) -> None:
        """Looks for a builder that can build what is wished.

        Raises:
            ExportError: TensorRT-RTX is not installed, or does not build for a wished compute capability.
        """
        self._options = options
        self._kind = _KINDS[options.runtime]
        self._gpu: GpuServing | None = None
        self._builder = EngineBuilder() if self._kind is EngineKind.TENSORRT_RTX else None
        # Compute capability as the builder takes it, to its name.
        self._targets = {int(name.replace(".", "")): name for name in options.compute_capabilities}
        if self._builder is not None:
            if not self._targets:
                possible = ",".join(map(str, self._builder.capabilities))
                raise ExportError(f"{self._builder} builds for GPUs that are named: --compute-capability {possible}")
            for capability in self._targets:
                self._builder.require(capability)

    def prepare(self, checkpoint: Path, spec: CheckpointSpec, layout: PromptLayout) -> None:
        """See the protocol."""
        for model, part in ((Model.ENCODER, ENCODER_DIR), (Model.RERANKER, RERANKER_DIR)):
            require_supported(json.loads((checkpoint / part / "config.json").read_text(encoding="utf-8")), model)
        self._gpu = gpu_serving(self._options, spec, layout)

    def bytes_needed(self, parameters: int) -> int:
        """See the protocol: the graphs, and every plan, which holds the same weights again."""
        copies = 1 + (0 if self._builder is None else len(self._targets))
        return parameters * _BYTES_PER_WEIGHT[self._options.precision or _USUAL_PRECISIONS[0]] * copies

    def export(self, subject: Subject) -> RuntimeExport:
        """See the protocol."""
        if self._gpu is None:
            raise ValueError("prepare() comes before export()")
        tried: list[EngineChoice] = []
        graphs = {model: self._choose(model, subject, tried) for model in ENGINE_MODELS}
        if self._builder is None:
            return self._leave_to_script(graphs, tried, self._gpu, subject.model.spec)
        return self._build(self._builder, graphs, tried, self._gpu, subject)

    def _choose(self, model: Model, subject: Subject, tried: list[EngineChoice]) -> _Graph:
        """The typed graph of the first precision that passes."""
        subject.notify(f"Exporting the {model.value} to ONNX")
        typed = TypedGraph.trace(subject.model, model)
        wished = self._options.precision
        for precision in (wished,) if wished else _USUAL_PRECISIONS:
            subject.notify(f"Typing the {model.value}'s graph {precision.value} and checking it")
            onnx = typed.write(precision, subject.scratch / "typed" / model / precision)
            parity = check_typed(subject.gate, model, onnx, precision)
            tried.append(EngineChoice(parity, parity.options.kind.value))
            if parity.passed:
                return _Graph(onnx, tried[-1])
            shutil.rmtree(onnx.parent)
        raise parity_failure(model, tried)

    def _leave_to_script(
        self, graphs: Mapping[Model, _Graph], tried: list[EngineChoice], gpu: GpuServing, spec: CheckpointSpec
    ) -> RuntimeExport:
        """The graphs, and a script that builds their plans on the GPU that serves."""
        script = build_script(
            {model: gpu.profiles.all_shapes(model, spec) for model in ENGINE_MODELS},
            {model: graph.precision for model, graph in graphs.items()},
        )
        models = {
            model: EngineModel(self._facts(model, gpu, graph, {}), graph_files(graph.onnx))
            for model, graph in graphs.items()
        }
        return RuntimeExport(
            models,
            {model: graph.choice for model, graph in graphs.items()},
            tuple(tried),
            gpu=gpu,
            compute_capabilities=self._options.compute_capabilities,
            build_script=script,
            put_off="TensorRT builds plans on the GPU that serves them",
        )

    def _build(
        self,
        builder: EngineBuilder,
        graphs: Mapping[Model, _Graph],
        tried: list[EngineChoice],
        gpu: GpuServing,
        subject: Subject,
    ) -> RuntimeExport:
        """The plans."""
        capabilities, models = tuple(self._targets.values()), {}
        for model, graph in graphs.items():
            subject.notify(f"Building the {model.value} for compute capability {', '.join(capabilities)}")
            folder = subject.scratch / "plans" / model
            built = builder.build_each(
                graph.onnx,
                gpu.profiles.all_shapes(model, subject.model.spec),
                {target: folder / plan_file(capabilities, name) for target, name in self._targets.items()},
            )
            plans = {capability_name(plan.compute_capability): _plan_facts(plan) for plan in built}
            facts = self._facts(model, gpu, graph, plans)
            models[model] = EngineModel(facts, {plan.path.name: plan.path for plan in built})
        chosen = {model: graph.choice for model, graph in graphs.items()}
        return RuntimeExport(models, chosen, tuple(tried), gpu=gpu, compute_capabilities=capabilities)

    def _facts(self, model: Model, gpu: GpuServing, graph: _Graph, plans: dict[str, PlanFacts]) -> EngineFacts:
        profiles = gpu.profiles.as_json()[model.value]
        return EngineFacts(
            engine=self._kind,
            precision=graph.precision,
            threads=0,
            opset=TYPED_OPSET,
            onnx_sha256=graph_digests(graph.onnx),
            parity=parity_facts(graph.choice),
            plans=plans,
            profiles=tuple({axis: AxisRange(**sizes) for axis, sizes in axes.items()} for axes in profiles),
        )


def _plan_facts(plan: BuiltPlan) -> PlanFacts:
    return PlanFacts(
        file=plan.path.name,
        sha256=plan.sha256,
        bytes=plan.bytes,
        tensorrt_flavour=plan.flavour,
        tensorrt_version=plan.version,
        timing_cache=False,
        build_seconds=plan.build_seconds,
    )
