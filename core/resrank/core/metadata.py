"""What the metadata of a passage may hold: a name has a string, a number, a truth value or a list of strings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import TypeAlias

from resrank.core.errors import InvalidInputError, Place
from resrank.core.limits import MAX_FIELD_BYTES, MAX_METADATA_BYTES

MetadataValue: TypeAlias = str | float | bool | tuple[str, ...]

Metadata: TypeAlias = Mapping[str, MetadataValue]

_GREATEST_WHOLE = 2**53  # up to here a double has every whole number


class FieldType(StrEnum):
    """What a field of metadata holds, in every record of a collection that has it."""

    STRING = "string"
    NUMBER = "number"
    BOOL = "bool"
    STRINGS = "strings"


def type_of(value: MetadataValue) -> FieldType:
    """The type of a field that holds a value."""
    if isinstance(value, str):
        return FieldType.STRING
    if isinstance(value, bool):  # before the numbers, of which Python counts it
        return FieldType.BOOL
    return FieldType.STRINGS if isinstance(value, tuple) else FieldType.NUMBER


def metadata_value(place: Place | str, name: str, given: object) -> MetadataValue:
    """A value as metadata keeps it: whole numbers as numbers, lists of strings as tuples.

    Args:
        place: What errors call the passage.
        name: The field's name, for errors.
        given: What a caller or a file has.

    Raises:
        InvalidInputError: It is of no type that metadata has, or a number that a double does not hold.
    """
    if isinstance(given, str | bool):
        return given
    if isinstance(given, int | float):
        return finite_number(place, f"metadata {name!r}", given)
    if isinstance(given, list | tuple) and all(isinstance(element, str) for element in given):
        return tuple(given)
    raise InvalidInputError(
        place, f"metadata {name!r} must be a string, a number, a bool or a list of strings, not {type(given).__name__}"
    )


def finite_number(place: Place | str, subject: str, given: float) -> float:
    """A number as a double.

    Args:
        place: What errors call its place.
        subject: What errors call the number.
        given: A whole number or a float.

    Raises:
        InvalidInputError: It is not finite, or a whole number that would come back as another one.
    """
    if isinstance(given, int):
        if abs(given) > _GREATEST_WHOLE:
            raise InvalidInputError(
                place, f"{subject} is a whole number beyond 2^53, which doubles round: give it as a string"
            )
    elif not math.isfinite(given):
        raise InvalidInputError(place, f"{subject} is not finite")
    return float(given)


def write_metadata(metadata: Metadata) -> str:
    """Metadata as a JSON object, its names in order."""
    return json.dumps(dict(metadata), ensure_ascii=False, sort_keys=True)


def read_metadata(text: str) -> dict[str, MetadataValue]:
    """Reads what :func:`write_metadata` wrote.

    Raises:
        ValueError: That is no JSON object of such values.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no object")  # noqa: TRY004  # of the text's content, as JSON's own
    metadata: dict[str, MetadataValue] = {}
    for name, value in found.items():
        if isinstance(value, list) and all(isinstance(element, str) for element in value):
            metadata[name] = tuple(value)
        elif isinstance(value, str | bool | float):
            metadata[name] = value
        else:
            raise ValueError(f"{name!r} holds {type(value).__name__}")
    return metadata


def metadata_bytes(metadata: Metadata) -> int:
    """What metadata counts against ``MAX_METADATA_BYTES``: names and strings in UTF-8, 8 a number, 1 a truth value.

    Raises:
        UnicodeEncodeError: A name or string is not valid Unicode.
    """
    return sum(len(name.encode()) + _value_bytes(value) for name, value in metadata.items())


def check_metadata(place: Place | str, id_: str, metadata: Metadata) -> None:
    """Refuses metadata that no record can have.

    Args:
        place: What errors call the passage.
        id_: Its id.
        metadata: All of it.

    Raises:
        InvalidInputError: It is too long or not valid Unicode, or the name of what is no string is empty or too long.
    """
    try:
        size = metadata_bytes(metadata)
    except UnicodeEncodeError as error:
        raise InvalidInputError(place, f"metadata of id {id_!r} is not valid Unicode: {error.reason}") from None
    if size > MAX_METADATA_BYTES:
        raise InvalidInputError(
            place, f"metadata of id {id_!r} too long, in bytes", limit=MAX_METADATA_BYTES, value=size
        )
    for name, value in metadata.items():
        if not isinstance(value, str) and not 1 <= (size := len(name.encode())) <= MAX_FIELD_BYTES:
            raise InvalidInputError(
                place,
                f"a name in the metadata of id {id_!r} empty or too long, in bytes",
                limit=f"1 to {MAX_FIELD_BYTES}",
                value=size,
            )


def _value_bytes(value: MetadataValue) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, tuple):
        return sum(len(element.encode()) for element in value)
    return 1 if isinstance(value, bool) else 8
