"""How a filter's names and values are written, in its text and in what is said of it: as a user would write them."""

from __future__ import annotations

import json
import re

KEYWORDS = frozenset({"and", "or", "not", "in", "exists"})

_NAME = re.compile(r"[A-Za-z_][\w.\-]*", re.ASCII)
_GREATEST_WHOLE = 2**53
_SHOWN = 80  # signs of a name or value, in an error
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (str, "a string"),
    ((int, float), "a number"),
    ((list, tuple, set, frozenset), "a list"),
    (dict, "an object"),
    (type(None), "null"),
)


def name_text(name: str) -> str:
    """A field's name, in quotes where it would be read as something else."""
    plain = _NAME.fullmatch(name) and name.lower() not in KEYWORDS
    return name if plain else json.dumps(name, ensure_ascii=False)


def value_text(value: str | float | bool) -> str:
    """A value: strings in quotes, whole numbers without a point, ``true`` and ``false``."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) <= _GREATEST_WHOLE
    return json.dumps(int(value) if whole else value, ensure_ascii=False)


def shown(text: str) -> str:
    """What was written, short enough for an error, and such that every terminal and protocol takes it."""
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return text.encode(errors="backslashreplace").decode()


def shown_value(value: object) -> str:
    """Anything that was given for a value, as JSON where that has it, short enough for an error."""
    if isinstance(value, str | float | bool):
        return shown(value_text(value))
    try:
        return shown(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError):
        text = str(value)
        return shown(type(value).__name__ if " at 0x" in text else text)


def kind_of(value: object) -> str:
    """What something is, in words of a filter's text and of JSON."""
    if isinstance(value, bool):  # before the numbers, of which Python counts it
        return "a bool"
    for kinds, words in _KINDS:
        if isinstance(value, kinds):
            return words
    return "something else"
