"""How many weights a backbone has, by the formulas of docs/gpu.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backbone:
    """Sizes of a decoder as in its config.json, in the letters of docs/gpu.md V, h, L, a, k, e and i."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    width: int

    @property
    def table(self) -> int:
        """Elements of the token table."""
        return self.vocabulary * self.hidden

    @property
    def body(self) -> int:
        """Elements of the layers' matrices."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.key_heads)
        return self.layers * (attention + 3 * self.hidden * self.width)

    @property
    def norms(self) -> int:
        """Elements of the layers' norms and the last one."""
        return self.layers * 2 * self.hidden + self.hidden
