"""Vectors of passages that were encoded before, in bounded memory."""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple, TypeAlias

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from resrank.core.truncation import Truncation

Vector: TypeAlias = NDArray[np.float16]

_DIGEST_BYTES = 32
_COUNT = struct.Struct("<i")

ENTRY_BYTES = 480
"""What an entry costs beside its vector: key, headers and its places in three dictionaries. By tracemalloc on CPython
3.11 it is 290 to 365 bytes while the cache fills, and up to 435 when entries come and go."""


class Kept(NamedTuple):
    """What is kept of a passage.

    Attributes:
        vector: FP16 [d].
        tokens_cut: Tokens of the passage that it was made without.
    """

    vector: Vector
    tokens_cut: int


class EmbeddingCache:
    """The most recently used vectors, as the FP16 numbers that ``rerank`` reads.

    A text that was encoded whole has the same vector whether or not it might have been cut; one that was let be cut may
    have been, and is found again only by those who let it be cut.

    Args:
        encoder_sha256: The encoder that makes the vectors; part of every key.
        max_bytes: Memory of all entries together; 0 for none.

    Attributes:
        max_bytes: As given.
    """

    def __init__(self, encoder_sha256: str, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._salt = bytes.fromhex(encoder_sha256)
        self._entries: LRUCache[bytes, bytes] = LRUCache(
            max_bytes, getsizeof=lambda entry: len(entry) - _COUNT.size + ENTRY_BYTES
        )

    @property
    def bytes_used(self) -> int:
        """Memory of the entries."""
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, text: bytes, *, truncate: bool | Truncation | None) -> bytes:
        """What a passage is kept under.

        Args:
            text: UTF-8.
            truncate: Whether it may be cut, and how.
        """
        digest = hashlib.blake2b(text, digest_size=_DIGEST_BYTES, key=self._salt).digest()
        truncation = Truncation.of(truncate)
        if truncation is None:
            return digest
        limit = b"" if truncation.token_limit is None else str(truncation.token_limit).encode()
        return digest + truncation.side.value[:1].encode() + limit

    def get(self, key: bytes) -> Kept | None:
        """A passage's vector, read-only, and what was cut off; None when it is not here."""
        entry = self._entries.get(key)
        if entry is None and len(key) == _DIGEST_BYTES + 1:
            entry = self._entries.get(key[:_DIGEST_BYTES])  # encoded whole for somebody who would not have had it cut
        if entry is None:
            return None
        return Kept(np.frombuffer(entry, np.float16, offset=_COUNT.size), *_COUNT.unpack_from(entry))

    def put(self, key: bytes, vector: Vector, tokens_cut: int = 0) -> None:
        """Keeps a vector, and lets go of those that were not used for longest.

        One with which nothing can be ranked, infinite or zero, is not kept: whoever meets it shall be told.

        Args:
            key: The passage's.
            vector: FP16 [d].
            tokens_cut: Tokens of the passage that it was made without.
        """
        if vector.nbytes + ENTRY_BYTES <= self.max_bytes and np.isfinite(vector).all() and vector.any():
            self._entries[key] = _COUNT.pack(tokens_cut) + vector.tobytes()
