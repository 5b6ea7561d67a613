"""Filters as SQL over the column ``fields``, a ``jsonb`` of each record's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resrank.core.filters import AllOf, AnyOf, Comparison, Filter, Not, Operator
from resrank.core.metadata import FieldType

_ORDER = {Operator.LT: "<", Operator.LE: "<=", Operator.GT: ">", Operator.GE: ">="}


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition and its parameters.

    Attributes:
        text: SQL that is true or false and never null.
        parameters: For its placeholders, in their order.
    """

    text: str
    parameters: tuple[Any, ...] = ()


def condition_of(condition: Filter, fields: Mapping[str, FieldType]) -> Condition:
    """A checked filter as SQL.

    Args:
        condition: The filter.
        fields: The collection's, which the filter was checked against.
    """
    match condition:
        case AllOf(filters):
            return _joined(" AND ", [condition_of(inner, fields) for inner in filters])
        case AnyOf(filters):
            return _joined(" OR ", [condition_of(inner, fields) for inner in filters])
        case Not(inner):
            return _negated(condition_of(inner, fields))
        case Comparison(name, Operator.EXISTS):
            return Condition("fields ? %s", (name,))
        case Comparison(name, operator, values):
            if operator in _ORDER:
                return _ordered(name, operator, values[0])
            equal = _equal(name, values, fields[name])
            return _negated(equal) if operator is Operator.NE else equal


def _equal(name: str, values: tuple[str | float | bool, ...], kind: FieldType) -> Condition:
    # No record has a NUL character, see `refuse_unstorable`.
    possible = [value for value in values if not (isinstance(value, str) and "\0" in value)]
    wanted = [json.dumps({name: [value] if kind is FieldType.STRINGS else value}) for value in possible]
    return Condition("fields @> ANY(%s::text[]::jsonb[])", (wanted,))


def _ordered(name: str, operator: Operator, value: str | float | bool) -> Condition:
    if not isinstance(value, str):
        return Condition(f"coalesce((fields ->> %s)::float8 {_ORDER[operator]} %s, false)", (name, float(value)))
    value, nul, _ = value.partition("\0")
    if nul:  # right behind what stands before it, in the order of strings without
        operator = Operator.LE if operator in (Operator.LT, Operator.LE) else Operator.GT
    return Condition(f'coalesce((fields ->> %s) COLLATE "C" {_ORDER[operator]} %s, false)', (name, value))


def _negated(inner: Condition) -> Condition:
    return Condition(f"NOT ({inner.text})", inner.parameters)


def _joined(operator: str, inner: list[Condition]) -> Condition:
    text = operator.join(f"({condition.text})" for condition in inner)
    return Condition(text, tuple(parameter for condition in inner for parameter in condition.parameters))
