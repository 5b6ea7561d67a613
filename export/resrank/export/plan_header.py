"""What the first bytes of a TensorRT plan say, before any runtime reads it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from resrank.serving.engines.base import EngineError, EngineKind

_HEADER = struct.Struct("<4sIQQ4B")
"""Tag, layout, (unknown), size of the file, version in four parts. Tag, layout and version are what NVIDIA's trtexec
reads in ``printPlanVersion`` (samples/common/sampleEngines.cpp of github.com/NVIDIA/TensorRT); that RTX plans are laid
out alike, and that the size stands where it does, was seen in plans of TensorRT-RTX 1.7.1."""

_TAGS = {b"ftrt": EngineKind.TENSORRT, b"vtrt": EngineKind.TENSORRT_RTX}
_LAYOUT = 0


@dataclass(frozen=True)
class PlanHeader:
    """What a plan says of itself.

    Attributes:
        flavour: Whose plan it is.
        version: Of the builder, in four parts, for instance (1, 7, 1, 116).
    """

    flavour: EngineKind
    version: tuple[int, int, int, int]


def read_plan_header(plan: Path) -> PlanHeader:
    """Reads who built a plan.

    Raises:
        EngineError: It cannot be read, is no plan, or is cut short.
    """
    try:
        size = plan.stat().st_size
        with plan.open("rb") as file:
            head = file.read(_HEADER.size)
    except OSError as error:
        raise EngineError(f"{plan}: cannot be read: {error.strerror}: build the engine or copy it there") from error
    if len(head) < _HEADER.size:
        raise EngineError(f"{plan}: {size} bytes are no whole TensorRT plan: copy or build it again")
    tag, layout, _, promised, *version = _HEADER.unpack(head)
    if tag not in _TAGS or layout != _LAYOUT:
        raise EngineError(f"{plan}: not a TensorRT plan (it begins with {head[:8]!r}): build it again")
    flavour = _TAGS[tag]
    if flavour is EngineKind.TENSORRT_RTX and promised != size:
        raise EngineError(f"{plan}: {size} bytes of {promised}, so it is cut short: copy or build it again")
    major, minor, patch, build = version
    return PlanHeader(flavour, (major, minor, patch, build))
