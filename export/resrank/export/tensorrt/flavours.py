"""What the two flavours of TensorRT do differently: which GPUs they build for, and how they find their kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from resrank.core.errors import ExportError
from resrank.export.tensorrt.compiler import Compiler
from resrank.export.tensorrt.partial_file import partial_file
from resrank.serving.engines.base import EngineError, EngineKind
from resrank.serving.engines.cuda import Gpu


class TensorRtCompiler(Compiler):
    """Production TensorRT: measures kernels on this machine's GPU and builds for it alone."""

    flavour = EngineKind.TENSORRT
    name = "TensorRT"

    def resolve(self, capability: int | None) -> int:
        """See :class:`~resrank.export.tensorrt.builder.EngineBuilder`."""
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
            with partial_file(path) as file:
                file.write(bytes(config.get_timing_cache().serialize()))
                file.finish()


class TensorRtRtxCompiler(Compiler):
    """TensorRT for RTX: compiles ahead of time for a list of capabilities, and needs no GPU for that."""

    flavour = EngineKind.TENSORRT_RTX
    name = "TensorRT for RTX"

    def __init__(self, workspace_bytes: int | None, progress: Callable[[str], None]) -> None:
        """See :class:`Compiler`."""
        super().__init__(workspace_bytes, progress)
        self._members = {
            int(name.removeprefix("SM")): member
            for name, member in self._trt.ComputeCapability.__members__.items()
            if name.startswith("SM")
        }
        self.capabilities = tuple(sorted(self._members))

    def resolve(self, capability: int | None) -> int:
        """See :class:`~resrank.export.tensorrt.builder.EngineBuilder`."""
        if capability is None:
            try:
                major, minor = Gpu(0).capability
            except EngineError as error:
                possible = ",".join(map(str, self.capabilities))
                reason = str(error).partition(": ")[0]  # what else to do with one is of no use for building
                raise ExportError(
                    f"{self} finds no GPU here to build for ({reason}): name one with --compute-capability ({possible})"
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
        if not config.set_compute_capability(member, 0):
            raise ExportError(f"{self} does not build for {member.name}: {self._errors.first()}")

    def _use_timing_cache(self, config: Any, path: Path | None) -> bool:
        """Nothing: timing caches are without effect since TensorRT-RTX 1.2, and make the builder look for a GPU."""
        return False

    def _save_timing_cache(self, config: Any, path: Path | None) -> None:
        """Nothing, as above."""
