"""Conditions on metadata that a search's results must meet, and how Python code words them.

    (F("year") >= 2020) & F("lang").is_in("en", "de") & ~F("draft").exists()

A filter cannot be made larger than the bounds in :mod:`resrank.core.limits`, so that whoever has one may walk it by
recursion.
"""

from __future__ import annotations

import dataclasses
import operator as order
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Never, TypeAlias, cast

from resrank.core import limits
from resrank.core.errors import InvalidInputError
from resrank.core.filter_words import kind_of, name_text, shown, shown_value
from resrank.core.metadata import FieldType, Metadata, MetadataValue, finite_number, type_of

FIELD = "filter"
"""What errors call a filter."""

Scalar: TypeAlias = str | float | bool
"""What a field is compared with."""

_NAMED_FIELDS = 20  # of an index, in an error


class Operator(StrEnum):
    """How a comparison compares; none but ``ne`` holds for a record that lacks the field."""

    EQ = "eq"
    NE = "ne"
    IN = "in"
    EXISTS = "exists"
    LT = "lt"
    LE = "le"
    GT = "gt"
    GE = "ge"

    @property
    def symbol(self) -> str:
        """How a filter's text writes it."""
        return _SYMBOLS.get(self, self.value)


_SYMBOLS = {"eq": "=", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


ORDERED: Mapping[Operator, Callable[[Any, Any], bool]] = {
    Operator.LT: order.lt,
    Operator.LE: order.le,
    Operator.GT: order.gt,
    Operator.GE: order.ge,
}
"""Operators that want an order, which numbers and strings have; that of strings is the one of their UTF-8 bytes."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How large a filter is.

    Attributes:
        depth: Levels.
        nodes: Comparisons and what joins them.
        values: In all comparisons.
        size: Names and strings, in UTF-8 bytes.

    Raises:
        InvalidInputError: It is larger than a filter may be.
    """

    depth: int
    nodes: int
    values: int
    size: int

    def __post_init__(self) -> None:
        for problem, limit, value in (
            ("nested too deeply, in levels", limits.MAX_FILTER_DEPTH, self.depth),
            ("too many conditions", limits.MAX_FILTER_NODES, self.nodes),
            ("too many values", limits.MAX_FILTER_VALUES, self.values),
            ("names and strings too long, in bytes", limits.MAX_FILTER_BYTES, self.size),
        ):
            if value > limit:
                raise InvalidInputError(FIELD, problem, limit=limit, value=value)

    @classmethod
    def around(cls, filters: tuple[Filter, ...]) -> Extent:
        """Of what joins some filters."""
        extents = [inner.extent for inner in filters]
        return cls(
            depth=1 + max(extent.depth for extent in extents),
            nodes=1 + sum(extent.nodes for extent in extents),
            values=sum(extent.values for extent in extents),
            size=sum(extent.size for extent in extents),
        )


class _Joinable:
    """``&``, ``|`` and ``~`` of filters."""

    __slots__ = ()

    def __and__(self, other: Filter) -> AllOf:
        return AllOf((*(self.filters if isinstance(self, AllOf) else (cast("Filter", self),)), other))

    def __or__(self, other: Filter) -> AnyOf:
        return AnyOf((*(self.filters if isinstance(self, AnyOf) else (cast("Filter", self),)), other))

    def __invert__(self) -> Not:
        return Not(cast("Filter", self))

    def __bool__(self) -> Never:
        # `a and b` would quietly be b, and so would 2020 <= F("year") <= 2022.
        raise TypeError("a filter is neither true nor false: join filters by &, | and ~, each in parentheses")


@dataclass(frozen=True, slots=True)
class Comparison(_Joinable):
    """A condition on one field.

    Attributes:
        field: Its name.
        operator: How it is compared.
        values: None with ``exists``, one or more with ``in``, else one.
        extent: How large the filter is.

    Raises:
        InvalidInputError: The number of values is not the operator's, or one is of no type that can be compared with.
    """

    field: str
    operator: Operator
    values: tuple[Scalar, ...] = ()
    extent: Extent = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        wanted = {Operator.EXISTS: "none", Operator.IN: f"1 to {limits.MAX_FILTER_VALUES}"}.get(self.operator, "1")
        found = len(self.values)
        if found != (self.operator is not Operator.EXISTS) and not (self.operator is Operator.IN and found):
            raise InvalidInputError(
                FIELD,
                f"{_start(self.field, self.operator)}: too few or too many values",
                limit=wanted,
                value=found,
            )
        object.__setattr__(self, "extent", Extent(1, 1, found, 0))  # before each of very many is looked at
        object.__setattr__(self, "values", tuple(_scalar(self.field, self.operator, value) for value in self.values))
        texts = (self.field, *(value for value in self.values if isinstance(value, str)))
        try:
            size = sum(len(text.encode()) for text in texts)
        except UnicodeEncodeError:
            raise InvalidInputError(FIELD, "a name or string is not valid Unicode: it has a lone surrogate") from None
        object.__setattr__(self, "extent", Extent(1, 1, found, size))


@dataclass(frozen=True, slots=True)
class AllOf(_Joinable):
    """Holds where all of some filters do; at least one."""

    filters: tuple[Filter, ...]
    extent: Extent = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "extent", _joined("all_of", self.filters))


@dataclass(frozen=True, slots=True)
class AnyOf(_Joinable):
    """Holds where one of some filters does; at least one."""

    filters: tuple[Filter, ...]
    extent: Extent = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "extent", _joined("any_of", self.filters))


@dataclass(frozen=True, slots=True)
class Not(_Joinable):
    """Holds where a filter does not."""

    filter: Filter
    extent: Extent = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "extent", _joined("not", (self.filter,)))


Filter: TypeAlias = Comparison | AllOf | AnyOf | Not


class F:
    """A field of metadata, to be compared: ``F("year") >= 2020``.

    Args:
        name: The field's name.
    """

    __slots__ = ("_name",)
    __hash__ = None  # type: ignore[assignment]  # what compares to a filter is no key of a dictionary

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise InvalidInputError(FIELD, f"a field's name must be a string: {shown_value(name)} is {kind_of(name)}")
        self._name = name

    def __repr__(self) -> str:
        return f'F("{self._name}")'

    def __eq__(self, value: Scalar) -> Comparison:  # type: ignore[override]
        return Comparison(self._name, Operator.EQ, (value,))

    def __ne__(self, value: Scalar) -> Comparison:  # type: ignore[override]
        return Comparison(self._name, Operator.NE, (value,))

    def __lt__(self, value: Scalar) -> Comparison:
        return Comparison(self._name, Operator.LT, (value,))

    def __le__(self, value: Scalar) -> Comparison:
        return Comparison(self._name, Operator.LE, (value,))

    def __gt__(self, value: Scalar) -> Comparison:
        return Comparison(self._name, Operator.GT, (value,))

    def __ge__(self, value: Scalar) -> Comparison:
        return Comparison(self._name, Operator.GE, (value,))

    def is_in(self, *values: Scalar) -> Comparison:
        """Whether the field has one of some values; of a field of strings, whether one of its own is among them."""
        return Comparison(self._name, Operator.IN, values)

    def exists(self) -> Comparison:
        """Whether a record has the field at all."""
        return Comparison(self._name, Operator.EXISTS)


def matches(condition: Filter, metadata: Metadata) -> bool:
    """Whether a record's metadata meets a condition. This defines what filters mean; stores are tested against it.

    Args:
        condition: The filter.
        metadata: All of a record's metadata.
    """
    match condition:
        case AllOf(filters):
            return all(matches(inner, metadata) for inner in filters)
        case AnyOf(filters):
            return any(matches(inner, metadata) for inner in filters)
        case Not(inner):
            return not matches(inner, metadata)
        case Comparison(name, Operator.NE, values):
            return not (name in metadata and _holds(Operator.EQ, metadata[name], values))
        case Comparison(name, operator, values):
            return name in metadata and _holds(operator, metadata[name], values)


def check_filter(condition: Filter, fields: Mapping[str, FieldType]) -> None:
    """Refuses a filter that makes no sense for a collection.

    Args:
        condition: The filter.
        fields: What the collection's metadata has.

    Raises:
        InvalidInputError: No record has a field of that name, or a field is compared with what is not of its type.
    """
    match condition:
        case AllOf(filters) | AnyOf(filters):
            for inner in filters:
                check_filter(inner, fields)
        case Not(inner):
            check_filter(inner, fields)
        case Comparison(name, operator, values):
            kind = fields.get(name)
            if kind is None:
                raise InvalidInputError(FIELD, f"no record has the field {shown(name_text(name))}: {_known(fields)}")
            if operator in ORDERED and kind not in (FieldType.NUMBER, FieldType.STRING):
                raise InvalidInputError(
                    FIELD,
                    f"{_start(name, operator)} {shown_value(values[0])}: {operator.symbol} compares numbers or "
                    f"strings, the field is {_KINDS[kind]}: use = or in",
                )
            compared = FieldType.STRING if kind is FieldType.STRINGS else kind
            for value in values:
                if type_of(value) is not compared:
                    raise InvalidInputError(
                        FIELD,
                        f"{_start(name, operator)} {shown_value(value)}: the field is {_KINDS[kind]}, the value "
                        f"{_KINDS[type_of(value)]}: {_WRITTEN[kind]}",
                    )


_KINDS = {
    FieldType.STRING: "a string",
    FieldType.NUMBER: "a number",
    FieldType.BOOL: "a bool",
    FieldType.STRINGS: "a list of strings",
}
_WRITTEN = {
    FieldType.STRING: "write a string, in quotes",
    FieldType.NUMBER: "write a number, without quotes",
    FieldType.BOOL: "write true or false",
    FieldType.STRINGS: "write one of its strings, in quotes",
}


def _start(name: str, operator: Operator) -> str:
    """How a comparison begins in an error, as its text does."""
    return f"{shown(name_text(name))} {operator.symbol}"


def _known(fields: Mapping[str, FieldType]) -> str:
    if not fields:
        return "the index has no metadata"
    names = sorted(fields)
    more = f" and {len(names) - _NAMED_FIELDS} more" if len(names) > _NAMED_FIELDS else ""
    return f"there are {', '.join(f'{name} ({fields[name].value})' for name in names[:_NAMED_FIELDS])}{more}"


def _joined(kind: str, filters: tuple[Filter, ...]) -> Extent:
    if not filters:
        raise InvalidInputError(FIELD, f"{kind} joins no conditions", limit="1 or more", value=0)
    for joined in filters:
        if not isinstance(joined, _Joinable):
            raise InvalidInputError(FIELD, f"{kind} joins filters: {shown_value(joined)} is {kind_of(joined)}")
    return Extent.around(filters)


def _scalar(name: str, operator: Operator, value: object) -> Scalar:
    if isinstance(value, str | bool):
        return value
    subject = f"{_start(name, operator)} {shown_value(value)}"
    if isinstance(value, int | float):
        return finite_number(FIELD, f"{subject}: the value", value)
    raise InvalidInputError(
        FIELD, f"{subject}: compare with a string, a number or a bool; the value is {kind_of(value)}"
    )


def _holds(operator: Operator, found: MetadataValue, values: tuple[Scalar, ...]) -> bool:
    if operator is Operator.EXISTS:
        return True
    if operator in (Operator.EQ, Operator.IN):
        own: tuple[Scalar, ...] = found if isinstance(found, tuple) else (found,)
        return any(type_of(one) is type_of(value) and one == value for one in own for value in values)
    (value,) = values
    # Python orders strings by code points, whose order is that of their UTF-8 bytes.
    return type_of(found) is type_of(value) in (FieldType.STRING, FieldType.NUMBER) and ORDERED[operator](found, value)
