"""The builders: one small interface, two flavours of TensorRT behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from resrank.export.profiles import ProfileShapes
from resrank.export.tensorrt.compiler import Compiler
from resrank.export.tensorrt.flavours import TensorRtCompiler, TensorRtRtxCompiler
from resrank.export.tensorrt.network import NetworkSummary
from resrank.export.tensorrt.plan import BuiltPlan
from resrank.serving.engines.base import EngineKind


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
    builders: dict[EngineKind, type[Compiler]] = {
        EngineKind.TENSORRT: TensorRtCompiler,
        EngineKind.TENSORRT_RTX: TensorRtRtxCompiler,
    }
    return builders[kind](workspace_bytes, progress)
