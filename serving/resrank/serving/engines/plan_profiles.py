"""Optimisation profiles of a plan: which shapes it takes, and which profile suits a call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from resrank.serving.engines.base import EngineError

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class ShapeRange:
    """The shapes of one input in one profile.

    Attributes:
        smallest: Least size of every axis, the batch included.
        largest: Greatest size of every axis.
    """

    smallest: Shape
    largest: Shape

    def takes(self, shape: Shape) -> bool:
        """Whether a shape lies within."""
        return len(shape) == len(self.smallest) and all(
            low <= size <= high for low, size, high in zip(self.smallest, shape, self.largest, strict=True)
        )

    def __str__(self) -> str:
        """``[1-16, 16-512]``."""
        sizes = (
            str(low) if low == high else f"{low}-{high}" for low, high in zip(self.smallest, self.largest, strict=True)
        )
        return f"[{', '.join(sizes)}]"


@dataclass(frozen=True)
class PlanProfile:
    """One optimisation profile.

    Attributes:
        index: Its number in the plan.
        inputs: Every input's shapes by tensor name.
    """

    index: int
    inputs: Mapping[str, ShapeRange]

    def takes(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether all inputs of a call lie within."""
        return shapes.keys() == self.inputs.keys() and all(self.inputs[name].takes(shapes[name]) for name in shapes)

    @property
    def volume(self) -> int:
        """Elements of all inputs at their largest."""
        return sum(math.prod(shapes.largest) for shapes in self.inputs.values())


def choose_profile(profiles: Sequence[PlanProfile], shapes: Mapping[str, Shape]) -> PlanProfile:
    """The tightest profile that a call fits in: its kernels were chosen for the nearest shapes.

    Args:
        profiles: Of the plan, at least one.
        shapes: Of the call's inputs by tensor name, the batch included.

    Raises:
        EngineError: None takes them; the message names the shapes and what the widest profile takes.
    """
    fitting = [profile for profile in profiles if profile.takes(shapes)]
    if fitting:
        return min(fitting, key=lambda profile: profile.volume)
    widest = max(profiles, key=lambda profile: profile.volume)
    found = ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
    taken = ", ".join(f"{name} {widest.inputs[name]}" for name in sorted(widest.inputs))
    raise EngineError(f"{found} fit no optimisation profile of the plan, whose widest takes {taken}: export wider ones")
