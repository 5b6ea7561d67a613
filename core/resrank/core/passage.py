"""What a passage is to the encoder and to the index, defined once so that a source can be compared with the store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def encoder_text(title: str, text: str) -> str:
    """The text that is encoded for a passage: title and text joined by a space, as the BEIR benchmark does.

    Args:
        title: The passage's title; may be empty.
        text: The passage's body; may be empty.

    Returns:
        The joined text without white space at its ends.
    """
    return f"{title} {text}".strip()


def content_sha256(title: str, text: str, metadata: Mapping[str, str]) -> bytes:
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
    for key in sorted(metadata):
        parts += [key, metadata[key]]
    for part in parts:
        encoded = part.encode()
        # The length goes first, so that moving a word from the title to the text changes the digest.
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()
