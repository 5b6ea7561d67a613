"""Why an engine of a model repository cannot be served on a machine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Refusal(StrEnum):
    """Why an engine cannot be served. The value is a part of every such sentence; ``docs/gpu.md`` explains each."""

    MISSING_FILE = "is not in the repository"
    OTHER_SIZE = "bytes, the manifest says"
    CHANGED = "has changed since the export"
    NOT_BUILT = "is not built yet"
    OTHER_CAPABILITY = "there is no plan for it"
    NO_GPU = "no GPU here"
    NO_SUCH_GPU = "is not among the GPUs here"
    TOO_LITTLE_MEMORY = "GiB of GPU memory"
    NO_BF16_GPU = "does not multiply in bf16"
    NO_BF16_CPU = "this CPU has no bf16"
    NO_VNNI = "this CPU has no VNNI"
    NO_BACKEND = "no tensorrt backend"
    NOT_INSTALLED = "is not installed"
    NOT_SERVED = "nothing serves plans"
    OTHER_VERSION = "plans load in the version that built them only"
    NO_CUDA = "built without CUDA"


@dataclass(frozen=True)
class Problem:
    """One reason why an engine cannot be served here.

    Attributes:
        refusal: Which.
        cause: What was found and what is needed.
        remedy: What to do.
    """

    refusal: Refusal
    cause: str
    remedy: str
