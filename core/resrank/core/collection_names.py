"""Names of an index's collections and aliases: one space of names, one rule, for client and sidecar."""

from __future__ import annotations

import re

from resrank.core.errors import InvalidInputError, Place

DEFAULT_COLLECTION = "default"
"""What an empty name means; it always exists."""

MAX_COLLECTION_NAME = 64
"""Longest name in characters, which are bytes."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]*")


def check_collection_name(field: Place | str, name: object) -> str:
    """Refuses what can name no collection and no alias. Such names are safe as those of folders and tables, too.

    Args:
        field: What errors call it.
        name: The name, not empty.

    Returns:
        The name.

    Raises:
        InvalidInputError: It is no string, is empty or too long, begins with a sign or holds other characters.
    """
    if not isinstance(name, str):
        raise InvalidInputError(field, f"must be a string, not {type(name).__name__}")
    if not 1 <= len(name) <= MAX_COLLECTION_NAME:
        raise InvalidInputError(
            field, "name empty or too long, in characters", limit=f"1 to {MAX_COLLECTION_NAME}", value=len(name)
        )
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            field, f"must be of a-z, 0-9, '.', '_', '-' and '@' and begin with a letter or digit, not {name!r}"
        )
    return name


def collection_name(field: Place | str, name: object) -> str:
    """The name that a request asks for, checked; the default one's where it asks for none.

    Raises:
        InvalidInputError: See :func:`check_collection_name`.
    """
    return DEFAULT_COLLECTION if name == "" else check_collection_name(field, name)
