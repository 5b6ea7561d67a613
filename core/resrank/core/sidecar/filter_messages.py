"""Filters as the sidecar's messages have them: the same for client and server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from resrank.core.errors import InvalidInputError
from resrank.core.filters import FIELD, AllOf, AnyOf, Comparison, Filter, Not, Operator, Scalar
from resrank.core.limits import MAX_FILTER_NODES, MAX_FILTER_VALUES
from resrank.core.sidecar.metadata_messages import read_value, value_message
from resrank.core.sidecar.v1 import retrieval_pb2 as pb

_OPERATORS = {
    Operator.EQ: pb.OPERATOR_EQ,
    Operator.NE: pb.OPERATOR_NE,
    Operator.IN: pb.OPERATOR_IN,
    Operator.EXISTS: pb.OPERATOR_EXISTS,
    Operator.LT: pb.OPERATOR_LT,
    Operator.LE: pb.OPERATOR_LE,
    Operator.GT: pb.OPERATOR_GT,
    Operator.GE: pb.OPERATOR_GE,
}
_READ_OPERATORS = {message: operator for operator, message in _OPERATORS.items()}


def filter_message(condition: Filter) -> pb.Filter:
    """A filter as a message."""
    match condition:
        case AllOf(filters):
            return pb.Filter(all_of=pb.Filters(filters=map(filter_message, filters)))
        case AnyOf(filters):
            return pb.Filter(any_of=pb.Filters(filters=map(filter_message, filters)))
        case Not(inner):
            return pb.Filter(negated=filter_message(inner))
        case Comparison(name, operator, values):
            comparison = pb.Comparison(
                field=name, operator=_OPERATORS[operator], values=[value_message(value) for value in values]
            )
            return pb.Filter(comparison=comparison)


def read_filter(message: pb.Filter) -> Filter:
    """A message's filter. Recursion is bounded by protobuf, which reads no message of more than 100 levels.

    Raises:
        InvalidInputError: It is too large, or a part of it is missing or makes no sense.
    """
    match message.WhichOneof("kind"):
        case "comparison":
            return _read_comparison(message.comparison)
        case "all_of":
            return AllOf(_read_all(message.all_of.filters))
        case "any_of":
            return AnyOf(_read_all(message.any_of.filters))
        case "negated":
            return Not(read_filter(message.negated))
    raise InvalidInputError(FIELD, "holds neither comparison, all_of, any_of nor negated")


def _read_all(messages: Sequence[pb.Filter]) -> tuple[Filter, ...]:
    if len(messages) > MAX_FILTER_NODES:  # before each of very many is looked at
        raise InvalidInputError(FIELD, "too many conditions", limit=MAX_FILTER_NODES, value=len(messages))
    return tuple(map(read_filter, messages))


def _read_comparison(message: pb.Comparison) -> Comparison:
    operator = _READ_OPERATORS.get(message.operator)
    if operator is None:
        raise InvalidInputError(
            FIELD, f"the comparison of {message.field!r} names no operator", limit="1 to 8", value=message.operator
        )
    if len(message.values) > MAX_FILTER_VALUES:
        raise InvalidInputError(FIELD, "too many values", limit=MAX_FILTER_VALUES, value=len(message.values))
    values = tuple(read_value(FIELD, message.field, value) for value in message.values)
    return Comparison(message.field, operator, cast("tuple[Scalar, ...]", values))  # which refuses a list
