"""From graph to plan by TensorRT for RTX, which builds ahead of time and needs no GPU for it.

Nothing serves its plans: what it takes and builds, TensorRT's parser and builder of the same generation take, too.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resrank.core.errors import ExportError
from resrank.core.extras import install_command
from resrank.core.progress import Notify
from resrank.export.profiles import ProfileShapes
from resrank.export.tensorrt.callbacks import (
    ErrorLines,
    Interruption,
    make_logger,
    make_progress_monitor,
    make_stream_writer,
)
from resrank.export.tensorrt.network import NetworkSummary, layers_of, parse, summarize, unfused_attention
from resrank.export.tensorrt.partial_file import partial_file, refuse_full_disk
from resrank.export.tensorrt.plan import BuiltPlan
from resrank.export.tensorrt.shapes import refuse_foreign_shapes, refuse_wrong_ranges
from resrank.serving.engines.base import EngineKind

_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")  # the latter without the meta-package
_NO_KERNEL = "not supported by a dedicated kernel"


@dataclass(frozen=True)
class _ParsedGraph:
    """A network definition with all that has to live as long as it: the parser owns its weights."""

    onnx: Path
    builder: Any
    network: Any
    parser: Any


class EngineBuilder:
    """Builds plans from exported graphs, strongly typed: every precision is the graph's own.

    Attributes:
        flavour: Whose plans.
        version: Of TensorRT for RTX.
        capabilities: Compute capabilities that it builds for, as 89.
    """

    flavour = EngineKind.TENSORRT_RTX

    def __init__(self, notify: Notify = lambda _: None) -> None:
        """Loads the library.

        Args:
            notify: Called with one line per phase of a build.

        Raises:
            ExportError: It is not installed.
        """
        self._trt = _load_library()
        self.version: str = self._trt.__version__
        self._members = {
            int(name.removeprefix("SM")): member
            for name, member in self._trt.ComputeCapability.__members__.items()
            if name.startswith("SM")
        }
        self.capabilities = tuple(sorted(self._members))
        self._progress = notify
        self._errors = ErrorLines()
        self._interruption = Interruption()
        self._logger = make_logger(self._trt, self._errors, self._interruption)

    def require(self, capability: int) -> None:
        """Refuses a compute capability that it does not build for.

        Raises:
            ExportError: The message says for which it does.
        """
        if capability not in self._members:
            possible = ", ".join(map(str, self.capabilities))
            raise ExportError(
                f"{self} does not build for compute capability {capability}, only for {possible}: choose one of these, "
                "or --runtime tensorrt, which builds on the GPU itself"
            )

    def inspect(self, onnx: Path) -> NetworkSummary:
        """Parses a graph without building it: well below a second for a graph of 100 MB.

        Args:
            onnx: ``model.onnx``.

        Raises:
            ExportError: TensorRT does not take the graph; the message names the node.
        """
        network = self._parse(onnx).network
        return NetworkSummary(summarize(network), unfused_attention(network))

    def build_each(
        self, onnx: Path, profiles: Sequence[ProfileShapes], plans: Mapping[int, Path]
    ) -> tuple[BuiltPlan, ...]:
        """Builds a plan for each of some compute capabilities from one parsed graph.

        Args:
            onnx: ``model.onnx``.
            profiles: Every input's shapes, one mapping per profile.
            plans: Compute capability, as 89, to the plan's path; written aside and renamed.

        Raises:
            ExportError: The graph, a profile or a capability cannot be built, or there is no space for the plans.
        """
        for capability in plans:
            self.require(capability)
        refuse_wrong_ranges(profiles)
        # A plan holds the graph's weights: better now than after minutes of building.
        needed = sum(file.stat().st_size for file in onnx.parent.glob(f"{onnx.name}*"))
        for out in plans.values():
            refuse_full_disk(out, needed)
        graph = self._parse(onnx)
        refuse_foreign_shapes(graph.network, profiles, onnx)
        return tuple(self._build(graph, profiles, capability, out) for capability, out in plans.items())

    def _parse(self, onnx: Path) -> _ParsedGraph:
        self._errors.lines.clear()
        builder = self._trt.Builder(self._logger)
        network = builder.create_network(1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = self._trt.OnnxParser(network, self._logger)
        parse(parser, network, onnx, self._errors, str(self))
        self._interruption.reraise()
        return _ParsedGraph(onnx, builder, network, parser)

    def _build(self, graph: _ParsedGraph, profiles: Sequence[ProfileShapes], capability: int, out: Path) -> BuiltPlan:
        config = self._configure(graph.builder, profiles)
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(self._members[capability], 0):
            raise ExportError(f"{self} does not build for compute capability {capability}: {self._errors.first()}")
        start = time.perf_counter()
        for everywhere in (False, True):
            self._errors.lines.clear()
            decomposable = self._let_decompose(graph.network, everywhere=everywhere)
            with partial_file(out) as file:
                writer = make_stream_writer(self._trt, file.write, self._interruption)
                done = graph.builder.build_serialized_network_to_stream(graph.network, config, writer)
                self._interruption.reraise()
                if done:
                    digest = file.finish()
                    return BuiltPlan(
                        path=out,
                        sha256=digest,
                        bytes=file.bytes,
                        flavour=self.flavour,
                        version=self.version,
                        compute_capability=capability,
                        build_seconds=time.perf_counter() - start,
                        fused_attention=not decomposable,
                        layers=summarize(graph.network),
                    )
            if not self._errors.mention(_NO_KERNEL):
                break
        raise ExportError(
            f"{graph.onnx}: {self} cannot build the engine: {self._errors.first()}; try narrower profiles or another "
            "precision, or export with --runtime torch"
        )

    def _configure(self, builder: Any, profiles: Sequence[ProfileShapes]) -> Any:
        config = builder.create_builder_config()
        config.progress_monitor = make_progress_monitor(self._trt, self._progress, self._interruption)
        # TF32 rounds the factors of fp32 products to 10 bits: fp32 would be no more exact than fp16.
        config.clear_flag(self._trt.BuilderFlag.TF32)
        for shapes in profiles:
            profile = builder.create_optimization_profile()
            for tensor, bounds in shapes.items():
                profile.set_shape(str(tensor), *bounds)
            config.add_optimization_profile(profile)
        return config

    def _let_decompose(self, network: Any, *, everywhere: bool) -> int:
        """Allows attention to be computed by several kernels where there is no dedicated one.

        For fp32 there never is. Elsewhere it is allowed in a second attempt only, so that a plan of the first one is
        proof that every attention is one kernel.

        Args:
            network: Changed in place.
            everywhere: Whether in bf16 and fp16, too.

        Returns:
            How many attentions may be decomposed now.
        """
        count = 0
        for layer in layers_of(network):
            if layer.type == self._trt.LayerType.ATTENTION_OUTPUT:
                layer.__class__ = self._trt.IAttentionOutputLayer  # the bindings' way to cast a layer
                allowed = everywhere or layer.get_output(0).dtype == self._trt.DataType.FLOAT
                layer.attention.decomposable = allowed
                count += allowed
        return count

    def __str__(self) -> str:
        return f"TensorRT for RTX {self.version}"


def _load_library() -> Any:
    problem: Exception | None = None
    for module in _MODULES:
        try:
            return importlib.import_module(module)
        except (ImportError, OSError) as error:
            problem = error
    raise ExportError(f"tensorrt_rtx is not installed ({problem}): {install_command('tensorrt-rtx')}") from problem
