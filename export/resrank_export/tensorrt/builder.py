"""The builders: one small interface, two flavours of TensorRT behind it."""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from resrank.durability import flush
from resrank.engines.base import EngineError, EngineKind
from resrank.engines.cuda import Gpu
from resrank.engines.tensorrt import load_tensorrt
from resrank.errors import ExportError
from resrank_export.profiles import ProfileShapes
from resrank_export.tensorrt.callbacks import ErrorLines, Interruption, make_logger, make_progress_monitor
from resrank_export.tensorrt.network import (
    LayerSummary,
    NetworkSummary,
    layers_of,
    parse,
    summarize,
    unfused_attention,
)

_NO_KERNEL = "not supported by a dedicated kernel"
_CHUNK_BYTES = 1 << 24
_ORDER = ("min", "opt", "max")


@dataclass(frozen=True)
class BuiltPlan:
    """One engine on the disk.

    Attributes:
        path: Where.
        sha256: Of the file.
        bytes: Its size.
        flavour: Which runtime reads it.
        version: Of the TensorRT that built it; the plan loads in that version only.
        compute_capability: Of the GPUs that it runs on, for instance 89.
        build_seconds: How long TensorRT worked, without parsing and writing.
        timing_cache: Whether kernels were chosen by an earlier build's timings.
        fused_attention: Whether TensorRT took every attention layer with a dedicated kernel. It has none for fp32.
        layers: Of the network definition.
    """

    path: Path
    sha256: str
    bytes: int
    flavour: EngineKind
    version: str
    compute_capability: int
    build_seconds: float
    timing_cache: bool
    fused_attention: bool
    layers: LayerSummary


class EngineBuilder(Protocol):
    """Builds plans from exported graphs, strongly typed: every precision is the graph's own.

    Attributes:
        flavour: Whose plans.
        version: Of TensorRT.
        capabilities: Compute capabilities that it builds for on any machine; empty when only for this machine's GPU.
    """

    flavour: EngineKind
    version: str
    capabilities: tuple[int, ...]

    def resolve(self, capability: int | None) -> int:
        """The compute capability that a build is for, without building.

        Args:
            capability: As 89; None for this machine's GPU.

        Raises:
            ExportError: This builder cannot build for it here; the message says for which it can.
        """
        ...

    def inspect(self, onnx: Path) -> NetworkSummary:
        """Parses a graph without building it: well below a second for a graph of 100 MB.

        Args:
            onnx: ``model.onnx``.

        Raises:
            ExportError: TensorRT does not take the graph; the message names the node.
        """
        ...

    def build(
        self,
        onnx: Path,
        profiles: Sequence[ProfileShapes],
        capability: int | None,
        out: Path,
        *,
        timing_cache: Path | None = None,
    ) -> BuiltPlan:
        """Builds one plan.

        Args:
            onnx: ``model.onnx``.
            profiles: Every input's shapes, one mapping per profile.
            capability: Of the GPUs it is for, as 89; None for this machine's GPU.
            out: The plan; written aside and renamed.
            timing_cache: Read when it exists, written afterwards. TensorRT-RTX times nothing and leaves it alone.

        Raises:
            ExportError: The graph, a profile or the capability cannot be built, or there is no space for the plan.
        """
        ...

    def build_each(
        self,
        onnx: Path,
        profiles: Sequence[ProfileShapes],
        plans: Mapping[int | None, Path],
        *,
        timing_cache: Path | None = None,
    ) -> tuple[BuiltPlan, ...]:
        """Builds plans for several compute capabilities from one parsed graph; see :meth:`build`.

        Args:
            onnx: ``model.onnx``.
            profiles: Every input's shapes, one mapping per profile.
            plans: Capability to the plan's path.
            timing_cache: See :meth:`build`.
        """
        ...


def load_builder(
    kind: EngineKind,
    *,
    workspace_bytes: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> EngineBuilder:
    """Loads a flavour's builder.

    Args:
        kind: ``TENSORRT`` or ``TENSORRT_RTX``.
        workspace_bytes: Most scratch memory on the GPU that one kernel of the plan may use; None for all there is.
        progress: Called with one line per phase of a build.

    Raises:
        ExportError: The flavour is not installed.
    """
    builders: dict[EngineKind, type[_Builder]] = {
        EngineKind.TENSORRT: _TensorRtBuilder,
        EngineKind.TENSORRT_RTX: _TensorRtRtxBuilder,
    }
    return builders[kind](workspace_bytes, progress)


class _Builder:
    """What both flavours have in common."""

    flavour: EngineKind
    name: str

    def __init__(self, workspace_bytes: int | None, progress: Callable[[str], None]) -> None:
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
        """See the protocol."""
        network, _ = self._parse(self._new_builder(), onnx)
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
        """See the protocol."""
        return self.build_each(onnx, profiles, {capability: out}, timing_cache=timing_cache)[0]

    def build_each(
        self,
        onnx: Path,
        profiles: Sequence[ProfileShapes],
        plans: Mapping[int | None, Path],
        *,
        timing_cache: Path | None = None,
    ) -> tuple[BuiltPlan, ...]:
        """See the protocol."""
        targets = {capability: self.resolve(capability) for capability in plans}
        refuse_wrong_ranges(profiles)
        for out in plans.values():
            _refuse_full_disk(out, onnx)
        builder = self._new_builder()
        # The parser owns the weights, so it has to live until the last plan is built.
        network, _parser = self._parse(builder, onnx)
        _refuse_foreign_shapes(network, profiles, onnx)
        layers = summarize(network)
        built = []
        for capability, out in plans.items():
            start = time.perf_counter()
            plan, timed, fused = self._serialize(builder, network, profiles, capability, timing_cache, onnx)
            seconds = time.perf_counter() - start
            digest = _write_aside(plan, out)
            built.append(
                BuiltPlan(
                    path=out,
                    sha256=digest,
                    bytes=plan.nbytes,
                    flavour=self.flavour,
                    version=self.version,
                    compute_capability=targets[capability],
                    build_seconds=seconds,
                    timing_cache=timed,
                    fused_attention=fused,
                    layers=layers,
                )
            )
        return tuple(built)

    def resolve(self, capability: int | None) -> int:
        """See the protocol."""
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

    def _new_builder(self) -> Any:
        self._errors.lines.clear()
        try:
            return self._trt.Builder(self._logger)
        except TypeError as error:  # what the bindings make of a null pointer, as production TensorRT gives it
            raise ExportError(
                f"{self} does not start on this machine ({self._errors.first()}): it needs a GPU and its driver"
            ) from error

    def _parse(self, builder: Any, onnx: Path) -> tuple[Any, Any]:
        # Ignored from TensorRT 11 on, where there is nothing else.
        strongly_typed = self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = builder.create_network(1 << int(strongly_typed))
        parser = self._trt.OnnxParser(network, self._logger)
        parse(parser, network, onnx, self._errors, str(self))
        self._interruption.reraise()
        return network, parser

    def _serialize(
        self,
        builder: Any,
        network: Any,
        profiles: Sequence[ProfileShapes],
        capability: int | None,
        timing_cache: Path | None,
        onnx: Path,
    ) -> tuple[Any, bool, bool]:
        """The plan, whether earlier timings were used, and whether every attention has a dedicated kernel."""
        config = builder.create_builder_config()
        config.progress_monitor = make_progress_monitor(self._trt, self._progress, self._interruption)
        # TF32 rounds the factors of fp32 products to 10 bits: fp32 would be no more exact than fp16.
        config.clear_flag(self._trt.BuilderFlag.TF32)
        if self._workspace_bytes is not None:
            config.set_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE, self._workspace_bytes)
        self._target(config, capability)
        for shapes in profiles:
            profile = builder.create_optimization_profile()
            for tensor, bounds in shapes.items():
                profile.set_shape(str(tensor), *bounds)
            config.add_optimization_profile(profile)
        timed = self._use_timing_cache(config, timing_cache)
        for everywhere in (False, True):
            self._errors.lines.clear()
            decomposable = self._let_decompose(network, everywhere=everywhere)
            plan = builder.build_serialized_network(network, config)
            self._interruption.reraise()
            if plan is not None:
                self._save_timing_cache(config, timing_cache)
                return plan, timed, not decomposable
            if not self._errors.mention(_NO_KERNEL):
                break
        raise ExportError(
            f"{onnx}: {self} cannot build the engine: {self._errors.first()}; try narrower profiles or another "
            "precision, or export with --runtime torch"
        )

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


class _TensorRtBuilder(_Builder):
    """Production TensorRT: measures kernels on this machine's GPU and builds for it alone."""

    flavour = EngineKind.TENSORRT
    name = "TensorRT"

    def resolve(self, capability: int | None) -> int:
        """See the protocol."""
        try:
            major, minor = Gpu(0).capability
        except EngineError as error:
            raise ExportError(f"{self} builds on the GPU that serves, and here is none to build on: {error}") from error
        found = 10 * major + minor
        if capability not in (None, found):
            raise ExportError(
                f"{self} builds for this machine's GPU, which has compute capability {major}.{minor}, and not for "
                f"{capability}: build on such a GPU, or export with --compute-capability {found}"
            )
        return found

    def _target(self, config: Any, capability: int | None) -> None:
        """There is no choice."""

    def _use_timing_cache(self, config: Any, path: Path | None) -> bool:
        if path is None:
            return False
        timings = path.read_bytes() if path.is_file() else b""
        accepted = config.set_timing_cache(config.create_timing_cache(timings), ignore_mismatch=False)
        if timings and not accepted:  # of another GPU or version: this build starts anew
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        return bool(timings and accepted)

    def _save_timing_cache(self, config: Any, path: Path | None) -> None:
        if path is not None:
            _write_aside(config.get_timing_cache().serialize(), path)


class _TensorRtRtxBuilder(_Builder):
    """TensorRT for RTX: compiles ahead of time for a list of capabilities, and needs no GPU for that."""

    flavour = EngineKind.TENSORRT_RTX
    name = "TensorRT for RTX"

    def __init__(self, workspace_bytes: int | None, progress: Callable[[str], None]) -> None:
        super().__init__(workspace_bytes, progress)
        self._members = {
            int(name.removeprefix("SM")): member
            for name, member in self._trt.ComputeCapability.__members__.items()
            if name.startswith("SM")
        }
        self.capabilities = tuple(sorted(self._members))

    def resolve(self, capability: int | None) -> int:
        """See the protocol."""
        if capability is None:
            try:
                major, minor = Gpu(0).capability
            except EngineError as error:
                possible = ",".join(map(str, self.capabilities))
                raise ExportError(
                    f"{self} finds no GPU here to build for: {error}; name one with --compute-capability ({possible})"
                ) from error
            return 10 * major + minor
        if capability not in self._members:
            possible = ", ".join(map(str, self.capabilities))
            raise ExportError(
                f"{self} does not build for compute capability {capability}, only for {possible}: choose one of these, "
                "or --runtime tensorrt, which builds on the GPU itself"
            )
        return capability

    def _target(self, config: Any, capability: int | None) -> None:
        member = self._trt.ComputeCapability.CURRENT if capability is None else self._members[capability]
        config.num_compute_capabilities = 1
        config.set_compute_capability(member, 0)

    def _use_timing_cache(self, config: Any, path: Path | None) -> bool:
        """Nothing: timing caches are without effect since TensorRT-RTX 1.2, and make the builder look for a GPU."""
        return False

    def _save_timing_cache(self, config: Any, path: Path | None) -> None:
        """Nothing, as above."""


def refuse_wrong_ranges(profiles: Sequence[ProfileShapes]) -> None:
    """Checks that shapes ascend from min over opt to max.

    Raises:
        ExportError: There are no profiles, or a size does not ascend; the message names profile, input and axis.
    """
    if not profiles:
        raise ExportError("no optimisation profile is given; an engine with dynamic shapes needs at least one")
    for index, shapes in enumerate(profiles):
        for tensor, (smallest, optimal, largest) in shapes.items():
            for axis, sizes in enumerate(zip(smallest, optimal, largest, strict=True)):
                if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
                    found = ", ".join(f"{name} {size}" for name, size in zip(_ORDER, sizes, strict=True))
                    raise ExportError(
                        f"profile {index}: axis {axis} of {tensor}: {found}; they must ascend and start at 1 or above"
                    )


def _refuse_foreign_shapes(network: Any, profiles: Sequence[ProfileShapes], onnx: Path) -> None:
    """Checks that every profile names the graph's inputs and keeps its fixed sizes."""
    inputs = {
        tensor.name: tuple(tensor.shape) for tensor in (network.get_input(index) for index in range(network.num_inputs))
    }
    for index, shapes in enumerate(profiles):
        if shapes.keys() != inputs.keys():
            raise ExportError(
                f"{onnx}: profile {index} is for inputs {', '.join(sorted(shapes))}, but the graph has "
                f"{', '.join(sorted(inputs))}; export the graph and its profiles together"
            )
        for tensor, bounds in shapes.items():
            fixed = inputs[tensor]
            for bound, shape in zip(_ORDER, bounds, strict=True):
                if len(shape) != len(fixed) or any(
                    own not in (-1, size) for own, size in zip(fixed, shape, strict=True)
                ):
                    raise ExportError(
                        f"{onnx}: profile {index} has {tensor} {list(shape)} as {bound}, but the graph takes "
                        f"{[size if size >= 0 else 'any' for size in fixed]}; give a profile of that form"
                    )


def _refuse_full_disk(out: Path, onnx: Path) -> None:
    """Before minutes of building: a plan holds the graph's weights."""
    out.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(file.stat().st_size for file in onnx.parent.glob(f"{onnx.name}*"))
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise ExportError(_no_space(out, needed, free))


def _write_aside(content: Any, out: Path) -> str:
    """Writes a file under another name, renames it, and gives its sha256.

    Raises:
        ExportError: There is no space; nothing stays behind.
    """
    aside = out.with_name(f".{out.name}.partial")
    view = memoryview(content)
    digest = hashlib.sha256()
    try:
        with aside.open("wb") as file:
            for start in range(0, view.nbytes, _CHUNK_BYTES):
                chunk = view[start : start + _CHUNK_BYTES]
                digest.update(chunk)
                file.write(chunk)
        flush(aside)
        aside.replace(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ExportError(_no_space(out, view.nbytes, shutil.disk_usage(out.parent).free)) from error
        raise ExportError(f"{out}: cannot be written: {error.strerror}; choose another place with --out") from error
    finally:
        aside.unlink(missing_ok=True)
    return digest.hexdigest()


def _no_space(out: Path, needed: int, free: int) -> str:
    return (
        f"{out}: no space for the engine: it needs {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free; make room, "
        "or choose another place with --out"
    )
