"""What repositories are exported for. All stand behind :class:`ExportRuntime`; adding one is one file and one line."""

from __future__ import annotations

from resrank.export.export_options import ExportOptions
from resrank.export.manifest import Runtime
from resrank.export.runtimes.base import EngineChoice, ExportRuntime, RuntimeExport, Subject

__all__ = ["EngineChoice", "ExportRuntime", "RuntimeExport", "Subject", "load_runtime"]


def load_runtime(options: ExportOptions) -> ExportRuntime:
    """Makes what exports for the wished runtime.

    Raises:
        ExportError: What it needs is not installed, or cannot do what is wished.
    """
    match options.runtime:
        case Runtime.CPU:
            from resrank.export.runtimes.cpu import CpuRuntime

            return CpuRuntime(options)
        case Runtime.TENSORRT | Runtime.TENSORRT_RTX:
            from resrank.export.runtimes.plans import PlanRuntime

            return PlanRuntime(options)
        case Runtime.TORCH:
            from resrank.export.runtimes.torch import TorchRuntime

            return TorchRuntime(options)
