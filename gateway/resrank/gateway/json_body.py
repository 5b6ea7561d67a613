"""Bodies in JSON: how much there is to parse before it is parsed, and what is read of texts that are no Unicode."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from json.decoder import JSONDecoder
from typing import Any

import numpy as np
from pydantic_core import from_json

from resrank.core.errors import InvalidInputError
from resrank.gateway.failures import RefusedError, malformed, too_many_elements

_SPACE = re.compile(r"[ \t\r\n]*")
_DEEPEST = 32
_decoder = JSONDecoder()

_MOST_ELEMENTS = 200_000
"""Lists, objects and elements of one body: an empty list is 3 bytes of a body and some 80 of memory, and 16 MiB of them
took seconds. No schema reads vectors or lists of lists, so that what a request needs are its documents and their
fields: each of 1000 has room for 200."""

_OF_A_DOCUMENT = 8
"""The same of one document, an object of several fields: decides where the settings allow more than 25,000."""

_MOST_FIELDS = 1000
"""At the top of a body: schemas have a dozen, and of each that there is not pydantic makes a finding."""

_PIECE = 1024 * 1024
_QUOTE = ord('"')
_NO_SIGNS = bytes(set(range(256)) - set(b'"[{,'))


def read_json(body: bytes, longest: Mapping[str, int]) -> Any:
    """Reads a body.

    Half of a surrogate pair, which Python's ``json.dumps`` writes of texts that were decoded wrongly, is read as
    U+FFFD: one such document is no reason to refuse the others.

    Args:
        body: UTF-8.
        longest: Elements that lists of these names may have, at the top of the body.

    Raises:
        InvalidInputError: A list has more, or there are too many fields.
        RefusedError: It is no JSON, or has more elements than any request needs, and was not parsed.
    """
    most = max(_MOST_ELEMENTS, _OF_A_DOCUMENT * max(longest.values(), default=0))
    if _has_more_elements(body, most):
        _name_long_list(body, longest)
        raise RefusedError(too_many_elements(most))
    value = _parse(body)
    if isinstance(value, dict):
        _check_lengths(value, longest)
    return value


def _has_more_elements(body: bytes, most: int) -> bool:
    """Whether a body has more of ``[``, ``{`` and ``,`` outside of its strings, of which every value but one needs one.

    A mebibyte at a time, so that it ends where there are too many, takes little memory, and lets other threads go on.
    """
    if sum(map(body.count, (b"[", b"{", b","))) <= most:
        return False
    place, found, within = 0, 0, 0
    while place < len(body) and found <= most:
        piece = body[place : place + _PIECE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # what it escapes is in the next piece
            piece = piece[:-1] or piece
        place += len(piece)
        # Without escapes every quote begins or ends a string. Pairs of backslashes go first: in \\" the quote is none.
        signs = piece.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_SIGNS)
        if signs:
            found_signs = np.frombuffer(signs, np.uint8)
            quotes = found_signs == _QUOTE
            inside = (np.add.accumulate(quotes, dtype=np.uint8) + within) & 1  # overflows at an even number
            found += np.count_nonzero(~quotes & (inside == 0))
            within = int(inside[-1])
    return found > most


def _name_long_list(body: bytes, longest: Mapping[str, int]) -> None:
    """Refuses by its name a list of too many texts, which tells a caller more than how much there is in all.

    Only strings, numbers and the like are passed on the way: what lists and objects cost is not known.
    """
    try:
        _walk(body.decode("utf-8"), longest)
    except InvalidInputError:
        raise
    except (ValueError, IndexError):
        return


def _walk(text: str, longest: Mapping[str, int]) -> None:
    place = _behind("{", text, 0)
    for _ in range(_MOST_FIELDS):
        key, place = _scalar(text, place)
        place = _behind(":", text, place)
        if key in longest and text[place] == "[":
            place = _behind("[", text, place)
            for _ in range(longest[key]):
                place = _behind(",", text, _scalar(text, place)[1])
            raise _too_many(key, longest[key])
        place = _behind(",", text, _scalar(text, place)[1])


def _scalar(text: str, place: int) -> tuple[Any, int]:
    if text[place] in "[{":
        raise ValueError("no scalar")
    return _decoder.raw_decode(text, place)


def _behind(sign: str, text: str, place: int) -> int:
    """Where something begins again behind a sign that must be next."""
    place = _skip(text, place)
    if text[place] != sign:
        raise ValueError(f"no {sign}")
    return _skip(text, place + 1)


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return place if found is None else found.end()


def _check_lengths(fields: Mapping[str, Any], longest: Mapping[str, int]) -> None:
    if len(fields) > _MOST_FIELDS:
        raise InvalidInputError("body", "too many fields", limit=_MOST_FIELDS, value=len(fields))
    for key, most in longest.items():
        value = fields.get(key)
        if isinstance(value, list) and len(value) > most:
            raise _too_many(key, most)


def _too_many(key: str, most: int) -> InvalidInputError:
    return InvalidInputError(key, "too many in one request", limit=most, value="more")


def _parse(body: bytes) -> Any:
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
