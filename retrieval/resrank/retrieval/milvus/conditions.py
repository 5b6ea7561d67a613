"""Filters in Milvus' language, over the JSON field ``metadata``."""

from __future__ import annotations

import json
from collections.abc import Mapping

from resrank.core.filters import AllOf, AnyOf, Comparison, Filter, Not, Operator
from resrank.core.metadata import FieldType
from resrank.retrieval.milvus.server import quoted

_ORDER = {Operator.LT: "<", Operator.LE: "<=", Operator.GT: ">", Operator.GE: ">="}


def condition_of(condition: Filter, fields: Mapping[str, FieldType]) -> str:
    """A checked filter in Milvus' language.

    Args:
        condition: The filter.
        fields: The collection's, which the filter was checked against.
    """
    match condition:
        case AllOf(filters):
            return " and ".join(f"({condition_of(inner, fields)})" for inner in filters)
        case AnyOf(filters):
            return " or ".join(f"({condition_of(inner, fields)})" for inner in filters)
        case Not(inner):
            return f"not ({condition_of(inner, fields)})"
        case Comparison(name, Operator.NE, values):
            return f"not ({_holds(Comparison(name, Operator.EQ, values), fields[name])})"
        case Comparison(name):
            return _holds(condition, fields[name])


def _holds(comparison: Comparison, kind: FieldType) -> str:
    field = f"metadata[{quoted(comparison.field)}]"
    values = [quoted(value) if isinstance(value, str) else json.dumps(value) for value in comparison.values]
    if comparison.operator is Operator.EXISTS:
        return f"(exists {field})"
    if comparison.operator in _ORDER:
        return f"(exists {field}) and ({field} {_ORDER[comparison.operator]} {values[0]})"
    equal = [
        f"json_contains({field}, {value})" if kind is FieldType.STRINGS else f"{field} == {value}" for value in values
    ]
    return f"(exists {field}) and ({' or '.join(equal)})"
