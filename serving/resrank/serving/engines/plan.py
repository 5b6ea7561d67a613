"""TensorRT plans as files: which one fits a GPU, and what their first bytes say before any runtime reads them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resrank.core.names import PLAN_FILE
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


def plan_file(capability: tuple[int, int]) -> str:
    """The name of the plan for one compute capability, where a version folder holds several: ``model.sm89.plan``."""
    major, minor = capability
    stem, suffix = PLAN_FILE.split(".")
    return f"{stem}.sm{major}{minor}.{suffix}"


def find_plan(folder: Path, capability: Callable[[], tuple[int, int]]) -> Path:
    """The plan that a GPU runs.

    Args:
        folder: A version folder with one ``model.plan``, or a plan for each of several compute capabilities.
        capability: Tells the GPU's; asked only where there are several.

    Raises:
        EngineError: There is none for it; the message names those that there are.
    """
    if (folder / PLAN_FILE).is_file():
        return folder / PLAN_FILE
    plans = sorted(path.name for path in folder.glob("*.plan"))
    if not plans:
        raise EngineError(f"{folder}: no {PLAN_FILE}: build the engines with build-engines.sh, or export again")
    found = capability()
    if plan_file(found) not in plans:
        raise EngineError(
            f"{folder}: no {plan_file(found)} for this GPU, but {', '.join(plans)}: export again with "
            f"--compute-capability {found[0]}.{found[1]}"
        )
    return folder / plan_file(found)


def read_plan_header(plan: Path) -> PlanHeader:
    """Reads who built a plan.

    Args:
        plan: The file.

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


def refuse_foreign_plan(plan: Path, flavour: EngineKind, installed: str) -> None:
    """Refuses a plan that the installed runtime would not take.

    Args:
        plan: The file.
        flavour: Of the runtime.
        installed: The runtime's version, ``1.7.1.116``. Plans load in the version that built them.

    Raises:
        EngineError: It is another flavour's or version's, is no plan, or is cut short.
    """
    header = read_plan_header(plan)
    if header.flavour is not flavour:
        raise EngineError(
            f"{plan}: a plan of {header.flavour.value}, which {flavour.value} does not read: export again for "
            f"{flavour.value}"
        )
    parts = tuple(int(part) for part in installed.split(".") if part.isdigit())
    if header.version[: len(parts)] != parts[: len(header.version)]:
        built = ".".join(map(str, header.version))
        raise EngineError(
            f"{plan}: built by {flavour.value} {built}, but {installed} is installed: install {built}, or build the "
            "plan again"
        )
