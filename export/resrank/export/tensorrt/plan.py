"""What a builder hands back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resrank.export.tensorrt.network import LayerSummary
from resrank.serving.engines.base import EngineKind


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
        build_seconds: How long TensorRT worked, without parsing.
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
    fused_attention: bool
    layers: LayerSummary
