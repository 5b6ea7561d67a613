"""Checks of optimisation profiles as shapes, before TensorRT sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resrank.core.errors import ExportError
from resrank.export.profiles import ProfileShapes

_ORDER = ("min", "opt", "max")


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


def refuse_foreign_shapes(network: Any, profiles: Sequence[ProfileShapes], onnx: Path) -> None:
    """Checks that every profile names the graph's inputs and keeps its fixed sizes.

    Args:
        network: ``INetworkDefinition``.
        profiles: Every input's shapes, one mapping per profile.
        onnx: The graph, for the message.

    Raises:
        ExportError: One does not; the message names profile and input.
    """
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
