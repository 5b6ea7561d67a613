"""How texts that are too long are cut: the same words for clients, models and HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from operator import index
from typing import SupportsIndex

from resrank.core.errors import InvalidInputError


class Side(StrEnum):
    """Which end of a text is cut off where it is too long."""

    LEFT = "left"
    RIGHT = "right"


@dataclass(frozen=True)
class Truncation:
    """Leave to cut texts.

    Attributes:
        side: Which end goes.
        token_limit: Tokens of a passage that are read at most, those around it included; None for as many as the model
            reads, which more do not raise. Of queries it says nothing.

    Raises:
        InvalidInputError: The side is none, or the limit is no whole number from 1 on.
    """

    side: Side = Side.RIGHT
    token_limit: int | None = None

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "side", Side(self.side))
        except ValueError:
            raise InvalidInputError("truncation_side", "unknown", limit=", ".join(Side), value=self.side) from None
        if self.token_limit is None:
            return
        if isinstance(self.token_limit, bool) or not isinstance(self.token_limit, SupportsIndex):
            raise InvalidInputError("token_limit", f"must be a whole number, not {type(self.token_limit).__name__}")
        object.__setattr__(self, "token_limit", index(self.token_limit))
        if self.token_limit < 1:
            raise InvalidInputError("token_limit", "too small", limit=1, value=self.token_limit)

    @classmethod
    def of(cls, truncate: bool | Truncation | None) -> Truncation | None:
        """What a caller says in short: True for cutting at the right, False or None for refusing.

        Args:
            truncate: The caller's word.
        """
        if isinstance(truncate, Truncation):
            return truncate
        return cls() if truncate else None

    def cut(self, ids: list[int], room: int, head: int = 0) -> list[int]:
        """The token ids that stay.

        Args:
            ids: All of them.
            room: How many may stay.
            head: How many at the beginning stay whatever the side: an instruction.
        """
        if len(ids) <= room:
            return ids
        if self.side is Side.RIGHT:
            return ids[:room]
        return ids[:head] + ids[len(ids) - (room - head) :]
