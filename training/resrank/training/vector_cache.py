"""Vectors of texts on disk, so that a text is encoded once for all runs with one encoder."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Side = Literal["passages", "queries"]

_FILE = "vectors.sqlite3"
_SCHEMA = "CREATE TABLE IF NOT EXISTS vectors(key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"
_BLOCK = 500  # keys in one question to the database, which takes a thousand at least
_PATIENCE_S = 60.0  # while another process writes


class VectorCache:
    """One SQLite file for all encoders: a key is the digest of encoder, side and text.

    A cache that cannot be read or written costs time and nothing else: whatever it lacks is encoded.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        """Names the encoder.

        Args:
            folder: Where the file lies or will lie.
            identity: Digest of all that decides a vector, precision included.
        """
        self._file = folder / _FILE
        self._identity = identity

    def complete(
        self,
        side: Side,
        texts: Sequence[str],
        dimension: int,
        dtype: torch.dtype,
        encode: Callable[[Sequence[str]], Tensor],
    ) -> Tensor:
        """Gives the vectors of texts, encoding and keeping those that are not there.

        Args:
            side: As what they are encoded.
            texts: Distinct or not.
            dimension: d.
            dtype: FP16 or FP32, of the vectors and of what is kept.
            encode: Encodes some of the texts, ``dtype`` [n, d].

        Returns:
            ``dtype`` [len(texts), d] on the CPU, in the order of ``texts``.
        """
        keys = [self._key(side, dtype, text) for text in texts]
        known = self._read(list(dict.fromkeys(keys)))
        row_type = np.dtype("<f2" if dtype is torch.float16 else "<f4")
        known = {key: row for key, row in known.items() if len(row) == dimension * row_type.itemsize}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            made = encode(list(missing.values())).numpy().astype(row_type)
            fresh = {key: row.tobytes() for key, row in zip(missing, made, strict=True)}
            self._write(fresh)
            known.update(fresh)
        packed = bytearray().join(known[key] for key in keys)
        if not packed:
            return torch.empty(0, dimension, dtype=dtype)
        return torch.frombuffer(packed, dtype=dtype).reshape(len(texts), dimension)

    def _key(self, side: Side, dtype: torch.dtype, text: str) -> bytes:
        digest = hashlib.blake2b(f"{self._identity}\0{side}\0{dtype}\0".encode(), digest_size=16)
        digest.update(text.encode(errors="surrogatepass"))
        return digest.digest()

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        if not self._file.is_file():
            return {}
        found: dict[bytes, bytes] = {}
        try:
            with closing(sqlite3.connect(self._file, timeout=_PATIENCE_S)) as connection:
                for start in range(0, len(keys), _BLOCK):
                    block = keys[start : start + _BLOCK]
                    marks = ",".join("?" * len(block))
                    found.update(connection.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", block))
        except sqlite3.Error as error:
            logger.warning("%s cannot be read, and its texts are encoded anew: %s", self._file, error)
        return found

    def _write(self, rows: dict[bytes, bytes]) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._file, timeout=_PATIENCE_S)) as connection, connection:
                connection.execute(_SCHEMA)
                connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows.items())
        except (OSError, sqlite3.Error) as error:
            logger.warning("vectors are not remembered in %s: %s", self._file, error)
