"""Filters as text, for commands, HTTP and Triton's request parameters.

    year >= 2020 and lang in (en, de) and not draft exists
    (title = "War and Peace" or tags = novel) and not retired = true

``and`` binds closer than ``or``, ``not`` closer than both. ``=`` and ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``,
``in (…)``, ``not in (…)`` and ``exists`` compare. A word that reads as a number is one, ``true`` and ``false`` are
truth values, and any other word is a string; in single or double quotes, with JSON's escapes, everything is. Keywords
stand in either case.
"""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import dataclass

from resrank.core.errors import InvalidInputError
from resrank.core.filter_words import KEYWORDS, name_text, shown, value_text
from resrank.core.filters import FIELD, AllOf, AnyOf, Comparison, Filter, Not, Operator, Scalar
from resrank.core.limits import MAX_FILTER_DEPTH, MAX_FILTER_NODES, MAX_FILTER_TEXT_BYTES, MAX_FILTER_VALUES

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<quoted> "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' )
      | (?P<symbol> <= | >= | != | == | [=<>(),] )
      | (?P<word> [^\s"'<>=!(),]+ )
      | (?P<end> \Z )
    )""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_OPERATORS = {
    "=": Operator.EQ,
    "==": Operator.EQ,
    "!=": Operator.NE,
    "<": Operator.LT,
    "<=": Operator.LE,
    ">": Operator.GT,
    ">=": Operator.GE,
}
_TRUTHS = {"true": True, "false": False}
_GREATEST_WHOLE = 2**53  # up to here a double has every whole number


def parse_filter(text: str) -> Filter:
    """Reads a filter.

    Args:
        text: At most ``MAX_FILTER_TEXT_BYTES`` of UTF-8.

    Raises:
        InvalidInputError: It is none; the message has the column and what was expected there.
    """
    if not text.strip():
        raise InvalidInputError(FIELD, "empty or only whitespace")
    if (size := len(text.encode(errors="replace"))) > MAX_FILTER_TEXT_BYTES:
        raise InvalidInputError(FIELD, "too long, in bytes", limit=MAX_FILTER_TEXT_BYTES, value=size)
    return _Parser(text).whole()


def filter_text(condition: Filter) -> str:
    """Writes a filter, which :func:`parse_filter` reads as one of the same meaning."""
    match condition:
        case AllOf(filters):
            return " and ".join(map(_inner_text, filters))
        case AnyOf(filters):
            return " or ".join(map(_inner_text, filters))
        case Not(inner):
            return f"not {_inner_text(inner)}"
        case Comparison(name, Operator.EXISTS, _):
            return f"{name_text(name)} exists"
        case Comparison(name, Operator.IN, values):
            return f"{name_text(name)} in ({', '.join(map(value_text, values))})"
        case Comparison(name, operator, (value,)):
            return f"{name_text(name)} {operator.symbol} {value_text(value)}"
    raise AssertionError(f"{condition!r} is no filter")


def _inner_text(condition: Filter) -> str:
    text = filter_text(condition)
    return f"({text})" if isinstance(condition, AllOf | AnyOf) else text


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # the group of the pattern
    text: str
    column: int  # from 1

    def says(self, *words: str) -> bool:
        return self.kind != "quoted" and self.text.lower() in words


class _Parser:
    """Reads from left to right with one token seen ahead, so that what is too long ends where it is."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self._depth = 0
        self._comparisons = 0
        self._next = self._token()

    def whole(self) -> Filter:
        found = self._any_of()
        if self._next.kind != "end":
            raise self._expected("and, or or the end")
        return found

    def _any_of(self) -> Filter:
        filters = [self._all_of()]
        while self._next.says("or"):
            self._take()
            filters.append(self._all_of())
        return filters[0] if len(filters) == 1 else AnyOf(tuple(filters))

    def _all_of(self) -> Filter:
        filters = [self._condition()]
        while self._next.says("and"):
            self._take()
            filters.append(self._condition())
        return filters[0] if len(filters) == 1 else AllOf(tuple(filters))

    def _condition(self) -> Filter:
        if not self._next.says("not", "("):
            return self._comparison()
        if self._depth == MAX_FILTER_DEPTH:
            problem = "nested too deeply, in times of not and ("
            raise self._wrong(self._next.column, problem, MAX_FILTER_DEPTH, MAX_FILTER_DEPTH + 1)
        self._depth += 1
        found: Filter
        if self._take().says("not"):
            found = Not(self._condition())
        else:
            found = self._any_of()
            self._take_symbol(")", "and, or or )")
        self._depth -= 1
        return found

    def _comparison(self) -> Filter:
        if self._next.kind not in ("word", "quoted") or self._next.says(*KEYWORDS):
            raise self._expected("a field, not or (")
        self._comparisons += 1
        if self._comparisons > MAX_FILTER_NODES:
            raise self._wrong(
                self._next.column, "too many conditions", MAX_FILTER_NODES, f"{MAX_FILTER_NODES + 1} or more"
            )
        name = self._string(self._take())
        token = self._next
        if token.says(*_OPERATORS):
            return Comparison(name, _OPERATORS[self._take().text], (self._value(),))
        if token.says("exists"):
            self._take()
            return Comparison(name, Operator.EXISTS)
        if token.says("in"):
            return self._listed(name)
        if token.says("not"):
            self._take()
            if not self._next.says("in"):
                raise self._expected("in")
            return Not(self._listed(name))
        raise self._expected("=, !=, <, <=, >, >=, in, not in or exists")

    def _listed(self, name: str) -> Comparison:
        self._take()
        self._take_symbol("(", "( and a list of values")
        values = [self._value()]
        while self._next.says(","):
            self._take()
            values.append(self._value())
            if len(values) > MAX_FILTER_VALUES:
                raise self._wrong(self._next.column, "too many values", MAX_FILTER_VALUES, f"{len(values)} or more")
        self._take_symbol(")", ", or )")
        return Comparison(name, Operator.IN, tuple(values))

    def _value(self) -> Scalar:
        if self._next.kind not in ("word", "quoted"):
            raise self._expected("a value")
        if self._next.says(*KEYWORDS):
            raise self._expected("a value, in quotes where it is such a word")
        token = self._take()
        if token.kind == "word":
            if token.says(*_TRUTHS):
                return _TRUTHS[token.text.lower()]
            if _NUMBER.fullmatch(token.text):
                return self._number(token)
        return self._string(token)

    def _number(self, token: _Token) -> float:
        number = float(token.text)
        if math.isinf(number):
            raise self._wrong(token.column, "a number too large", f"±{sys.float_info.max:.2g}", shown(token.text))
        if re.fullmatch(r"[+-]?\d+", token.text) and abs(int(token.text)) > _GREATEST_WHOLE:
            problem = "a whole number that would be rounded: where the field is a string, put it in quotes"
            raise self._wrong(token.column, problem, f"±{_GREATEST_WHOLE}", shown(token.text))
        return number

    def _string(self, token: _Token) -> str:
        if token.kind == "word":
            return token.text
        inner = token.text[1:-1]
        if token.text[0] == "'":
            inner = re.sub(r"""\\.|\"""", _in_double_quotes, inner, flags=re.DOTALL)
        try:
            read: str = json.loads(f'"{inner}"', strict=False)
        except ValueError:
            problem = f"a string with an escape that JSON does not have: {shown(token.text)}"
            raise self._wrong(token.column, problem) from None
        return read

    def _take(self) -> _Token:
        token = self._next
        self._next = self._token()
        return token

    def _take_symbol(self, symbol: str, expected: str) -> None:
        if not self._next.says(symbol):
            raise self._expected(expected)
        self._take()

    def _token(self) -> _Token:
        match = _TOKEN.match(self._text, self._end)
        if match is None:
            rest = self._text[self._end :].lstrip()
            column = len(self._text) - len(rest) + 1
            raise self._wrong(column, "a string without an end" if rest[0] in "\"'" else f"unexpected {rest[0]!r}")
        self._end = match.end()
        kind = str(match.lastgroup)
        return _Token(kind, match[kind], match.start(kind) + 1)

    def _expected(self, what: str) -> InvalidInputError:
        token = self._next
        found = "the end" if token.kind == "end" else shown(token.text)
        return self._wrong(token.column, f"expected {what}, found {found}")

    def _wrong(self, column: int, problem: str, limit: object = None, value: object = None) -> InvalidInputError:
        return InvalidInputError(FIELD, f"column {column}: {problem}", limit=limit, value=value)


def _in_double_quotes(match: re.Match[str]) -> str:
    return {"\\'": "'", '"': '\\"'}.get(match[0], match[0])
