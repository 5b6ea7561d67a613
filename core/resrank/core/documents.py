"""Documents of a request: those that can be ranked, and why the others cannot. What cuts texts to their bytes.

The servers refuse texts of too many bytes before they are looked at, whether they may be cut or not: whoever may cut
them, the gateway and the frameworks' adapters, does so before they are sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resrank.core.errors import InvalidInputError, Place
from resrank.core.limits import MAX_PASSAGE_BYTES, MAX_QUERY_BYTES
from resrank.core.passage import check_id
from resrank.core.truncation import Side

_BLANK_WHERE_CUT = "empty or only whitespace where it was cut"


@dataclass(frozen=True)
class Documents:
    """A request's documents.

    Attributes:
        usable: Those that can be ranked, in the caller's order.
        places: Where each of them stands in the caller's list.
        cut: Places of those that were cut already, since they have more bytes than a passage may.
        unusable: Place to what is wrong, of the others.
    """

    usable: tuple[str, ...]
    places: tuple[int, ...]
    cut: frozenset[int]
    unusable: Mapping[int, str]


def sort_texts(texts: Sequence[str], *, truncate: bool, side: Side, strict: bool, field: str) -> Documents:
    """Tells texts apart.

    Args:
        texts: As they came.
        truncate: Whether those with too many bytes may be cut.
        side: Where they are cut.
        strict: Whether one that cannot be ranked fails the request.
        field: What errors call the list.

    Raises:
        InvalidInputError: With ``strict``, the first one that cannot be ranked; without ``truncate``, the first that is
            too long.
    """
    usable: list[str] = []
    places: list[int] = []
    cut: set[int] = set()
    unusable: dict[int, str] = {}
    for index, text in enumerate(texts):
        place = Place(field, (index,))
        try:
            size = len(text_bytes(place, text))
        except InvalidInputError as error:
            if strict:
                raise
            unusable[index] = error.problem
            continue
        if size > MAX_PASSAGE_BYTES:
            if not truncate:
                raise InvalidInputError(place, "too many bytes", limit=MAX_PASSAGE_BYTES, value=size)
            text = cut_bytes(text, MAX_PASSAGE_BYTES, side)  # noqa: PLW2901
            cut.add(index)
            if not text.strip():
                if strict:
                    raise InvalidInputError(place, _BLANK_WHERE_CUT)
                unusable[index] = _BLANK_WHERE_CUT
                continue
        usable.append(text)
        places.append(index)
    return Documents(tuple(usable), tuple(places), frozenset(cut), unusable)


def sort_ids(ids: Sequence[str], *, strict: bool, field: str) -> Documents:
    """Tells ids apart: of one that stands there twice the second is none.

    Args:
        ids: As they came.
        strict: Whether one that can be no passage's fails the request.
        field: What errors call the list.

    Raises:
        InvalidInputError: With ``strict``, the first such one.
    """
    usable: dict[str, int] = {}
    unusable: dict[int, str] = {}
    for index, id_ in enumerate(ids):
        place = Place(field, (index,))
        try:
            check_id(place, id_)
            if id_ in usable:
                raise InvalidInputError(place, f"the same id as {field}[{usable[id_]}]")
            usable[id_] = index
        except InvalidInputError as error:
            if strict:
                raise
            unusable[index] = error.problem
    return Documents(tuple(usable), tuple(usable.values()), frozenset(), unusable)


def fit_query(query: str, *, truncate: bool, side: Side, field: Place | str = "query") -> str:
    """A query of no more bytes than one may have.

    Args:
        query: As it came.
        truncate: Whether it may be cut.
        side: Where it is cut.
        field: What errors call it.

    Raises:
        InvalidInputError: It is empty or not valid Unicode, or too long and may not be cut.
    """
    size = len(text_bytes(field, query))
    if size <= MAX_QUERY_BYTES:
        return query
    if not truncate:
        raise InvalidInputError(field, "too many bytes", limit=MAX_QUERY_BYTES, value=size)
    shorter = cut_bytes(query, MAX_QUERY_BYTES, side)
    if not shorter.strip():
        raise InvalidInputError(field, _BLANK_WHERE_CUT)
    return shorter


def cut_bytes(text: str, most: int, side: Side) -> str:
    """As much of a text as so many bytes hold, without half of a character.

    Args:
        text: The text.
        most: Bytes of UTF-8, at least 1.
        side: Which end goes.
    """
    encoded = text.encode()
    kept = encoded[-most:] if side is Side.LEFT else encoded[:most]
    return kept.decode(errors="ignore")


def text_bytes(field: Place | str, text: object) -> bytes:
    """UTF-8 of a text that says something, of whatever length.

    Args:
        field: What errors call it.
        text: As it came.

    Raises:
        InvalidInputError: It is no string, or says nothing, or is not valid Unicode.
    """
    if not isinstance(text, str):
        raise InvalidInputError(field, f"must be a string, not {type(text).__name__}")
    if not text.strip():
        raise InvalidInputError(field, "empty or only whitespace")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(field, f"not valid Unicode: lone surrogate at character {error.start}") from None
