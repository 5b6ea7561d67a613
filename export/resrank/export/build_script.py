"""``build-engines.sh``: builds a repository's plans inside the container that serves them, on the GPU they are for."""

from __future__ import annotations

import shlex
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from resrank.core.names import Model
from resrank.export.profiles import ProfileShapes, Shape
from resrank.serving.engines.base import Precision

BUILD_SCRIPT = "build-engines.sh"
_BOUNDS = ("min", "opt", "max")


class _Script(string.Template):
    """The placeholder's sign is one that the shell has no use for."""

    delimiter = "@@"


_FP32_ARGUMENTS = ("--noTF32", "--decomposableAttentions=*")
"""TensorRT rounds fp32 products to TF32 unless told not to, and has fused attention kernels for 16 bits only."""


def build_script(profiles: Mapping[Model, Sequence[ProfileShapes]], precisions: Mapping[Model, Precision]) -> str:
    """Writes the script for one repository.

    Args:
        profiles: Of ``encoder`` and ``reranker``: every input's shapes in each profile, in the profiles' order.
        precisions: That the graphs of both are typed for.

    Returns:
        A bash script for the repository's root.
    """
    template = Path(__file__).with_name(BUILD_SCRIPT).read_text(encoding="utf-8")
    return _Script(template).substitute(
        builds="".join(_build(model, profiles[model], precisions[model]) for model in (Model.ENCODER, Model.RERANKER))
    )


def _build(model: Model, profiles: Sequence[ProfileShapes], precision: Precision) -> str:
    lines = [f"build {model.value}"]
    if precision is Precision.FP32:
        lines += [f"  {shlex.quote(argument)}" for argument in _FP32_ARGUMENTS]
    for index, shapes in enumerate(profiles):
        lines.append(f"  --profile={index}")
        for place, bound in enumerate(_BOUNDS):
            spec = ",".join(f"{tensor.value}:{_dimensions(of_bound[place])}" for tensor, of_bound in shapes.items())
            lines.append(f"  {shlex.quote(f'--{bound}Shapes={spec}')}")
    return " \\\n".join(lines) + "\n"


def _dimensions(shape: Shape) -> str:
    """``8x128``, trtexec's form."""
    return "x".join(map(str, shape))
