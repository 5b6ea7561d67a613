"""What a passage is to the encoder and to the index, defined once so that a source can be compared with the store."""

from __future__ import annotations

import hashlib

from resrank.core.errors import InvalidInputError, Place
from resrank.core.limits import MAX_ID_BYTES
from resrank.core.metadata import Metadata, MetadataValue, write_metadata


def check_id(field: Place | str, id_: str) -> None:
    """Refuses an id that no passage can have.

    Args:
        field: What errors call it.
        id_: The id.

    Raises:
        InvalidInputError: It is empty, too long, no valid Unicode, or holds a NUL character.
    """
    try:
        size = len(id_.encode())
    except UnicodeEncodeError as error:
        raise InvalidInputError(field, f"not valid Unicode: lone surrogate at character {error.start + 1}") from None
    if not 1 <= size <= MAX_ID_BYTES:
        raise InvalidInputError(field, "id empty or too long, in bytes", limit=f"1 to {MAX_ID_BYTES}", value=size)
    if "\0" in id_:
        raise InvalidInputError(field, f"id {id_!r} holds a NUL character")


def encoder_text(title: str, text: str) -> str:
    """The text that is encoded for a passage: title and text joined by a space, as the BEIR benchmark does.

    Args:
        title: The passage's title; may be empty.
        text: The passage's body; may be empty.

    Returns:
        The joined text without white space at its ends.
    """
    return f"{title} {text}".strip()


def content_sha256(title: str, text: str, metadata: Metadata) -> bytes:
    """Fingerprint of a passage's content, independent of its id and of the encoder.

    Args:
        title: The passage's title.
        text: The passage's body.
        metadata: The passage's metadata; its order does not matter.

    Returns:
        The sha256 digest (32 bytes).
    """
    digest = hashlib.sha256()
    parts = [title, text]
    typed: dict[str, MetadataValue] = {}
    for key in sorted(metadata):
        value = metadata[key]
        if isinstance(value, str):
            parts += [key, value]
        else:
            typed[key] = value
    if typed:
        # Strings come in pairs, so that this odd part can be none of them, and strings alone keep their old digest.
        parts.append(write_metadata(typed))
    for part in parts:
        encoded = part.encode()
        # The length goes first, so that moving a word from the title to the text changes the digest.
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()
