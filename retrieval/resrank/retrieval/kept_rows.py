"""The rows of the vector table that a filter keeps: comparisons by the index of metadata, the rest of it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resrank.core.filters import AllOf, AnyOf, Comparison, Filter, Not, Operator
from resrank.retrieval.checksums import damaged
from resrank.retrieval.records import Keys
from resrank.retrieval.vector_table import VectorTable

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class KeptRows:
    """What a filter leaves of a table.

    Attributes:
        mask: bool [table.rows]; False for tombstones.
        keys: Of the rows that are kept, ascending.
    """

    mask: Mask
    keys: Keys


def kept_rows(condition: Filter, table: VectorTable, keys_of: Callable[[Comparison], Keys]) -> KeptRows:
    """Evaluates a filter.

    Args:
        condition: The filter.
        table: The rows.
        keys_of: Keys of live rows for which a comparison holds, or with ``ne`` does not.
    """
    mask = _mask(condition, table, keys_of) & table.alive
    return KeptRows(mask, table.keys[mask])


def _mask(condition: Filter, table: VectorTable, keys_of: Callable[[Comparison], Keys]) -> Mask:
    match condition:
        case AllOf((first, *others)):
            mask = _mask(first, table, keys_of)
            for inner in others:
                mask &= _mask(inner, table, keys_of)
            return mask
        case AnyOf((first, *others)):
            mask = _mask(first, table, keys_of)
            for inner in others:
                mask |= _mask(inner, table, keys_of)
            return mask
        case Not(inner):
            return ~_mask(inner, table, keys_of)
        case Comparison(operator=operator):
            keys = keys_of(condition)
            rows = table.rows_of(keys)
            if not np.array_equal(table.keys[np.minimum(rows, table.rows - 1)], keys):
                raise damaged("the index of metadata")
            mask = np.zeros(table.rows, np.bool_)
            mask[rows] = True
            return ~mask if operator is Operator.NE else mask
    raise AssertionError(f"{condition!r} is no filter")
