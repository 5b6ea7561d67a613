"""Distributions of whole numbers: how many candidates, words or texts a call has."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from resrank.loadtest.section import Section

_LARGEST = 100_000


class Fixed(Section):
    """Always the same number."""

    kind: Literal["fixed"]
    value: int = Field(ge=1, le=_LARGEST)

    @property
    def largest(self) -> int:
        """The largest number that can be drawn."""
        return self.value

    def draw(self, rng: np.random.Generator) -> int:
        """The number."""
        return self.value


class Uniform(Section):
    """Every number from ``low`` to ``high`` is as likely as any other."""

    kind: Literal["uniform"]
    low: int = Field(ge=1, le=_LARGEST)
    high: int = Field(ge=1, le=_LARGEST)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self

    @property
    def largest(self) -> int:
        """The largest number that can be drawn."""
        return self.high

    def draw(self, rng: np.random.Generator) -> int:
        """One number."""
        return int(rng.integers(self.low, self.high + 1))


class Choice(Section):
    """One of some numbers, each with its weight."""

    kind: Literal["choice"]
    values: tuple[Annotated[int, Field(ge=1, le=_LARGEST)], ...] = Field(min_length=1)
    weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if len(self.values) != len(self.weights):
            raise ValueError(f"has {len(self.values)} values and {len(self.weights)} weights: give one for each")
        return self

    @property
    def largest(self) -> int:
        """The largest number that can be drawn."""
        return max(self.values)

    def draw(self, rng: np.random.Generator) -> int:
        """One number."""
        weights = np.asarray(self.weights)
        return self.values[int(rng.choice(len(self.values), p=weights / weights.sum()))]


Count = Annotated[Fixed | Uniform | Choice, Field(discriminator="kind")]
