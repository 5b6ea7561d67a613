"""Bucket lengths: serving pads to them, so that requests of unequal lengths have one shape and are batched together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

from resrank.core.errors import InvalidInputError

MAX_WASTE = 0.25
"""Largest share of a padded row that is padding, where one step of the series is not more already."""


@dataclass(frozen=True)
class Buckets:
    """The lengths of every padded axis, ascending; the last one of each is the longest that is served.

    Attributes:
        passage_tokens: Tokens that ``passage_tokenizer`` pads to.
        query_tokens: Tokens that ``query_tokenizer`` pads to.
        sequence: Positions S that ``rerank_prompt`` pads to.
        candidates: Candidates N' that ``rerank_prompt`` pads to. They take no positions of their own.
    """

    passage_tokens: tuple[int, ...]
    query_tokens: tuple[int, ...]
    sequence: tuple[int, ...]
    candidates: tuple[int, ...]

    def __post_init__(self) -> None:
        """Checks each axis.

        Raises:
            InvalidInputError: One is empty, holds a length below 1, or does not ascend.
        """
        for field in fields(self):
            _refuse_unordered(field.name, getattr(self, field.name))


def sequence_bucket(length: int, candidates: int, buckets: Sequence[int]) -> int:
    """The length that a reranker's sequence is padded to, which is never below the number of its slots.

    Slots and sequence are padded apart, and slots of padding repeat the last candidate's. An engine that joins rows
    gives a row as many positions as it has slots.

    Args:
        length: Of the sequence before padding, at least 1.
        candidates: N', slots with padding.
        buckets: The sequence's, ascending.

    Raises:
        InvalidInputError: The sequence is longer than the longest bucket.
    """
    return bucket_length(max(length, min(candidates, buckets[-1])), buckets)


def bucket_length(length: int, buckets: Sequence[int], *, field: str = "length") -> int:
    """The length that a row is padded to.

    Args:
        length: Of the row, at least 1.
        buckets: Ascending.
        field: What the error calls the row.

    Returns:
        The smallest bucket that is not shorter.

    Raises:
        InvalidInputError: The row is longer than the longest bucket.
    """
    index = bisect_left(buckets, length)
    if index == len(buckets):
        raise InvalidInputError(field, "longer than the longest bucket", limit=buckets[-1], value=length)
    return buckets[index]


def bucket_series(first: int, last: int, *, step: int) -> tuple[int, ...]:
    """Lengths that waste little: multiples of ``step``, growing by a third once the steps are small against them.

    Args:
        first: The shortest row; the series starts at the first multiple of ``step`` that holds it.
        last: The longest row, which ends the series even when it is no multiple.
        step: What the lengths are multiples of.

    Returns:
        Ascending lengths, so that a row pads less than ``step`` positions or at most MAX_WASTE of the padded row.
    """
    lengths: list[int] = []
    length = -(-first // step) * step
    while length < last:
        lengths.append(length)
        # The next bucket's worst row is one position longer than this bucket.
        widest = int((length + 1) / (1 - MAX_WASTE)) // step * step
        length = max(length + step, widest)
    return (*lengths, last)


def format_buckets(buckets: Sequence[int]) -> str:
    """The text form for a parameter of a model config: ``16,32,64``."""
    return ",".join(map(str, buckets))


def parse_buckets(text: str, *, field: str) -> tuple[int, ...]:
    """Reads :func:`format_buckets` back.

    Args:
        text: Lengths, separated by commas.
        field: What the error calls them, for instance the parameter's name.

    Returns:
        Ascending lengths.

    Raises:
        InvalidInputError: There are none, one is no whole number above 0, or they do not ascend.
    """
    try:
        buckets = tuple(int(length) for length in text.split(","))
    except ValueError:
        raise InvalidInputError(
            field, f"{text!r} is no list of lengths: write whole numbers with commas between, as in 16,32,64"
        ) from None
    _refuse_unordered(field, buckets)
    return buckets


def _refuse_unordered(field: str, buckets: tuple[int, ...]) -> None:
    if not buckets or buckets[0] < 1 or any(left >= right for left, right in pairwise(buckets)):
        raise InvalidInputError(
            field, f"{format_buckets(buckets)!r} must be ascending lengths of at least 1, as in 16,32,64"
        )
