"""From graph to plan, the same way in both flavours of TensorRT."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resrank.core.errors import ExportError
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
from resrank.serving.engines.base import EngineError, EngineKind
from resrank.serving.engines.tensorrt import load_tensorrt

_NO_KERNEL = "not supported by a dedicated kernel"


@dataclass(frozen=True)
class _ParsedGraph:
    """A network definition with all that has to live as long as it: the parser owns its weights."""

    onnx: Path
    builder: Any
    network: Any
    parser: Any


class Compiler:
    """What both flavours have in common: an :class:`~resrank.export.tensorrt.builder.EngineBuilder` but for its target.

    Attributes:
        flavour: Whose plans.
        name: For messages.
        version: Of TensorRT.
        capabilities: Compute capabilities that it builds for on any machine.
    """

    flavour: EngineKind
    name: str

    def __init__(self, workspace_bytes: int | None, progress: Callable[[str], None]) -> None:
        """Loads the library.

        Args:
            workspace_bytes: See :func:`~resrank.export.tensorrt.builder.load_builder`.
            progress: Likewise.

        Raises:
            ExportError: It is not installed.
        """
        try:
            self._trt = load_tensorrt(self.flavour)
        except EngineError as error:
            raise ExportError(str(error)) from error
        self.version: str = self._trt.__version__
        self.capabilities: tuple[int, ...] = ()
        self._workspace_bytes = workspace_bytes
        self._progress = progress
        self._errors = ErrorLines()
        self._interruption = Interruption()
        self._logger = make_logger(self._trt, self._errors, self._interruption)

    def inspect(self, onnx: Path) -> NetworkSummary:
        """See :class:`~resrank.export.tensorrt.builder.EngineBuilder`."""
        network = self._parse(onnx).network
        return NetworkSummary(summarize(network), unfused_attention(network))

    def build(
        self,
        onnx: Path,
        profiles: Sequence[ProfileShapes],
        capability: int | None,
        out: Path,
        *,
        timing_cache: Path | None = None,
    ) -> BuiltPlan:
        """See :class:`~resrank.export.tensorrt.builder.EngineBuilder`."""
        return self.build_each(onnx, profiles, {capability: out}, timing_cache=timing_cache)[0]

    def build_each(
        self,
        onnx: Path,
        profiles: Sequence[ProfileShapes],
        plans: Mapping[int | None, Path],
        *,
        timing_cache: Path | None = None,
    ) -> tuple[BuiltPlan, ...]:
        """See :class:`~resrank.export.tensorrt.builder.EngineBuilder`."""
        targets = {capability: self.resolve(capability) for capability in plans}
        refuse_wrong_ranges(profiles)
        # A plan holds the graph's weights: better now than after minutes of building.
        needed = sum(file.stat().st_size for file in onnx.parent.glob(f"{onnx.name}*"))
        for out in plans.values():
            refuse_full_disk(out, needed)
        graph = self._parse(onnx)
        refuse_foreign_shapes(graph.network, profiles, onnx)
        return tuple(
            self._build(graph, profiles, capability, targets[capability], out, timing_cache)
            for capability, out in plans.items()
        )

    def resolve(self, capability: int | None) -> int:
        """See :class:`~resrank.export.tensorrt.builder.EngineBuilder`."""
        raise NotImplementedError

    def _target(self, config: Any, capability: int | None) -> None:
        """Tells the builder's config the capability."""
        raise NotImplementedError

    def _use_timing_cache(self, config: Any, path: Path | None) -> bool:
        """Loads earlier timings; whether there were any."""
        raise NotImplementedError

    def _save_timing_cache(self, config: Any, path: Path | None) -> None:
        """Keeps this build's timings."""
        raise NotImplementedError

    def _parse(self, onnx: Path) -> _ParsedGraph:
        self._errors.lines.clear()
        try:
            builder = self._trt.Builder(self._logger)
        except TypeError as error:  # what the bindings make of a null pointer, as production TensorRT gives it
            raise ExportError(
                f"{self} does not start on this machine ({self._errors.first()}): it needs a GPU and its driver"
            ) from error
        # Ignored from TensorRT 11 on, where there is nothing else.
        strongly_typed = self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = builder.create_network(1 << int(strongly_typed))
        parser = self._trt.OnnxParser(network, self._logger)
        parse(parser, network, onnx, self._errors, str(self))
        self._interruption.reraise()
        return _ParsedGraph(onnx, builder, network, parser)

    def _build(
        self,
        graph: _ParsedGraph,
        profiles: Sequence[ProfileShapes],
        capability: int | None,
        target: int,
        out: Path,
        timing_cache: Path | None,
    ) -> BuiltPlan:
        config = self._configure(graph.builder, profiles)
        self._target(config, capability)
        timed = self._use_timing_cache(config, timing_cache)
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
                    self._save_timing_cache(config, timing_cache)
                    return BuiltPlan(
                        path=out,
                        sha256=digest,
                        bytes=file.bytes,
                        flavour=self.flavour,
                        version=self.version,
                        compute_capability=target,
                        build_seconds=time.perf_counter() - start,
                        timing_cache=timed,
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
        if self._workspace_bytes is not None:
            config.set_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE, self._workspace_bytes)
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
        return f"{self.name} {self.version}"
