"""Bodies in JSON: how many elements a list has before it is parsed, and what is read of texts that are no Unicode."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from json.decoder import JSONDecoder
from typing import Any

from pydantic_core import from_json

from resrank.core.errors import InvalidInputError
from resrank.gateway.failures import malformed

_SPACE = re.compile(r"[ \t\r\n]*")
_DEEPEST = 32
_decoder = JSONDecoder()


def read_json(body: bytes, longest: Mapping[str, int]) -> Any:
    """Reads a body.

    Half of a surrogate pair, which Python's ``json.dumps`` writes of texts that were decoded wrongly, is read as
    U+FFFD: one such document is no reason to refuse the others.

    Args:
        body: UTF-8.
        longest: Elements that lists of these names may have, at the top of the body.

    Raises:
        InvalidInputError: A list has more; nothing behind its end was read.
        RefusedError: It is no JSON.
    """
    _check_lengths(body, longest)
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        if "surrogate" not in str(error) and "hex escape" not in str(error):
            raise malformed(f"body: no valid JSON: {error}") from None
    try:
        return _without_halves(json.loads(body, parse_constant=_refuse), 0)
    except (ValueError, RecursionError) as error:
        raise malformed(f"body: no valid JSON: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _check_lengths(body: bytes, longest: Mapping[str, int]) -> None:
    # A list has a comma less than elements, so that most bodies need no second look.
    if not longest or body.count(b",") < min(longest.values()):
        return
    try:
        _walk(body.decode("utf-8"), longest)
    except InvalidInputError:
        raise
    except (ValueError, RecursionError, IndexError):  # what is wrong is said when it is read
        return


def _walk(text: str, longest: Mapping[str, int]) -> None:
    """Goes from key to key, and in lists that are bounded from element to element, as far as the bounds allow."""
    place = _skip(text, 0)
    if text[place] != "{":
        return
    place = _skip(text, place + 1)
    while text[place] == '"':
        key, place = _decoder.raw_decode(text, place)
        place = _skip(text, place)
        if text[place] != ":":
            return
        place = _skip(text, place + 1)
        if key in longest and text[place] == "[":
            place = _walk_list(text, place, key, longest[key])
        else:
            _, place = _decoder.raw_decode(text, place)
        place = _skip(text, place)
        if text[place] != ",":
            return
        place = _skip(text, place + 1)


def _walk_list(text: str, place: int, key: str, most: int) -> int:
    place = _skip(text, place + 1)
    if text[place] == "]":
        return place + 1
    count = 0
    while True:
        count += 1
        if count > most:
            raise InvalidInputError(key, "too many in one request", limit=most, value="more")
        _, place = _decoder.raw_decode(text, place)
        place = _skip(text, place)
        if text[place] == "]":
            return place + 1
        if text[place] != ",":
            raise ValueError("no list")
        place = _skip(text, place + 1)


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return place if found is None else found.end()


def _without_halves(value: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"nested too deeply (limit {_DEEPEST})")
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return [_without_halves(each, depth + 1) for each in value]
        case dict():
            return {_without_halves(key, depth): _without_halves(each, depth + 1) for key, each in value.items()}
    return value
