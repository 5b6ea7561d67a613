"""Which TensorRT wrote a plan, read from the file's first bytes: no TensorRT and no GPU are needed for that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resrank.engines.base import EngineKind
from resrank.errors import ResRankError

_HEADER_BYTES = 28
_VERSION_AT = 24
_FLAVOURS = {b"ftrt": EngineKind.TENSORRT, b"vtrt": EngineKind.TENSORRT_RTX}
"""The first tag and the version's place are those of ``printPlanVersion`` in TensorRT's samples (sampleEngines.cpp,
what ``trtexec --getPlanVersionOnly`` prints); the second tag is what TensorRT-RTX 1.7.1 writes in the same form."""


class PlanError(ResRankError):
    """A file is no TensorRT plan, or not the one that was recorded."""


@dataclass(frozen=True)
class PlanHeader:
    """What a plan says of itself.

    Attributes:
        flavour: Which runtime reads it.
        version: Of the TensorRT that built it, ``major.minor.patch.build``.
    """

    flavour: EngineKind
    version: str


def read_plan_header(path: Path) -> PlanHeader:
    """Reads a plan's flavour and version.

    Args:
        path: A serialized engine.

    Raises:
        PlanError: The file cannot be read, is cut short, or is no plan.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        raise PlanError(f"{path}: the plan cannot be read ({error}): build it again") from None
    flavour = _FLAVOURS.get(header[:4])
    if len(header) < _HEADER_BYTES or flavour is None:
        raise PlanError(f"{path}: is no TensorRT plan, or only the beginning of one: build it again")
    return PlanHeader(flavour, ".".join(map(str, header[_VERSION_AT:_HEADER_BYTES])))
