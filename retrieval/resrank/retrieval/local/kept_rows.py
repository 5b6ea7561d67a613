"""The rows of the vector table that a filter keeps: comparisons by the index of metadata, the rest of it here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from resrank.core.filters import AllOf, AnyOf, Comparison, Filter, Not, Operator
from resrank.retrieval.local.checksums import damaged
from resrank.retrieval.local.vector_table import VectorTable
from resrank.retrieval.records import Keys

Mask = NDArray[np.bool_]

_FEW = 0.02
"""Of all rows: once some of the conditions that all must hold leave no more, the others are looked up for these alone.
That takes 2.4 microseconds each, and to list what holds 0.26 each, which is often half of all."""


class ComparedKeys(Protocol):
    """Finds live rows by their metadata."""

    def keys_where(self, comparison: Comparison, among: Keys | None = None) -> Keys:
        """Keys, ascending, for which a comparison holds, or with ``ne`` does not: among some, or of all."""

    def are_at_most(self, count: int, comparison: Comparison) -> bool:
        """Whether these are no more than so many."""


@dataclass(frozen=True, slots=True)
class KeptRows:
    """What a filter leaves of a table.

    Attributes:
        mask: bool [table.rows]; False for tombstones.
        keys: Of the rows that are kept, ascending.
    """

    mask: Mask
    keys: Keys


def kept_rows(condition: Filter, table: VectorTable, index: ComparedKeys) -> KeptRows:
    """Evaluates a filter.

    Args:
        condition: The filter.
        table: The rows.
        index: Of their metadata.
    """
    mask = _Evaluation(table, index).mask(condition, None) & table.alive
    return KeptRows(mask, table.keys[mask])


class _Evaluation:
    """A filter and a table. Masks are right for the rows that count, and say nothing of others."""

    def __init__(self, table: VectorTable, index: ComparedKeys) -> None:
        self._table = table
        self._index = index
        self._few = int(_FEW * table.rows)

    def mask(self, condition: Filter, among: Keys | None) -> Mask:
        """Bool [rows]: for which a condition holds, of some rows' keys, or of all rows."""
        match condition:
            case AllOf(filters):
                return self._all_of(filters, among)
            case AnyOf((first, *others)):
                mask = self.mask(first, among)
                for inner in others:
                    mask |= self.mask(inner, among)
                return mask
            case Not(inner):
                return ~self.mask(inner, among)
            case Comparison(operator=operator):
                held = self._held(self._index.keys_where(condition, among))
                return ~held if operator is Operator.NE else held
        raise AssertionError(f"{condition!r} is no filter")

    def _all_of(self, filters: Sequence[Filter], among: Keys | None) -> Mask:
        if among is None:
            filters = sorted(filters, key=self._holds_for_few, reverse=True)
        mask = self._table.alive.copy()
        for inner in filters:
            mask &= self.mask(inner, among)
            if among is None and np.count_nonzero(mask) <= self._few:
                among = self._table.keys[mask]
        return mask

    def _holds_for_few(self, condition: Filter) -> bool:
        return (
            isinstance(condition, Comparison)
            and condition.operator is not Operator.NE
            and self._index.are_at_most(self._few, condition)
        )

    def _held(self, keys: Keys) -> Mask:
        table = self._table
        rows = table.rows_of(keys)
        if not np.array_equal(table.keys[np.minimum(rows, table.rows - 1)], keys):
            raise damaged("the index of metadata")
        mask = np.zeros(table.rows, np.bool_)
        mask[rows] = True
        return mask
