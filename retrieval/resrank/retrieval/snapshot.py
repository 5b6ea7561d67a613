"""Snapshots of the dense index, so that a start need not build it: derived, checked, and thrown away when in doubt.

Layout: magic, length of the header (8 bytes little-endian), header (JSON), keys (int64 little-endian), the FAISS index,
sha256 of all before it (32 bytes).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from resrank.core.durability import flush
from resrank.retrieval.dense import FaissDenseIndex
from resrank.retrieval.records import HalfMatrix, Keys
from resrank.retrieval.vector_table import VectorTable

logger = logging.getLogger(__name__)

SNAPSHOT_FILE = "dense.snapshot"
_callbacks: Any = faiss  # the readers and writers over Python functions, which its type stubs lack
_MAGIC = b"RESRANK-DENSE-1\n"
_DIGEST_BYTES = 32


def write(folder: Path, dense: FaissDenseIndex) -> None:
    """Writes a snapshot beside its final name, flushes it to the disk and renames it, so that it is whole or absent.

    Args:
        folder: The index folder.
        dense: The index; it must not change meanwhile.

    Raises:
        OSError: The disk refused; the previous snapshot stays.
    """
    table = dense.table
    header = json.dumps({"factory": dense.factory, "dimension": table.dimension, "rows": table.rows}).encode()
    temporary = folder / f"{SNAPSHOT_FILE}.tmp"
    digest = hashlib.sha256()
    try:
        with temporary.open("wb") as file:

            def write_hashed(data: bytes) -> int:
                digest.update(data)
                return file.write(data)

            write_hashed(_MAGIC + len(header).to_bytes(8, "little") + header)
            write_hashed(table.keys.astype("<i8").tobytes())
            faiss.write_index(dense.index, _callbacks.PyCallbackIOWriter(write_hashed))
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / SNAPSHOT_FILE)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(folder)


def restore(
    folder: Path, factory: str, search_parameters: str, keys: Keys, vectors: HalfMatrix, *, last_key: int
) -> FaissDenseIndex | None:
    """Reads a snapshot and brings it up to date with the store.

    Args:
        folder: The index folder.
        factory: The kind of index wanted.
        search_parameters: FAISS search-time parameters.
        keys: The store's live keys, ascending.
        vectors: Their vectors, fp16 [n, d].
        last_key: The greatest key that the store has ever given.

    Returns:
        The index, or None when there is no snapshot, it is damaged, of another kind, or disagrees with the store.
    """
    path = folder / SNAPSHOT_FILE
    if not path.exists():
        return None
    try:
        snapshot_keys, index = _read(path, factory, vectors.shape[1])
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        logger.warning("dense snapshot not used, building the index anew: %s", error)
        return None
    last = int(snapshot_keys[-1]) if len(snapshot_keys) else 0
    if last > last_key:
        # The store was put back from a backup and will give these keys again: the file must not outlive this start.
        logger.warning("dense snapshot removed, building the index anew: it is newer than the store")
        path.unlink()
        return None
    known = int(np.searchsorted(keys, last, side="right"))
    alive = np.isin(snapshot_keys, keys[:known], assume_unique=True)
    if alive.sum() != known:
        logger.warning("dense snapshot not used, building the index anew: it lacks records that the store has")
        return None
    if alive.all():
        table = VectorTable(snapshot_keys, vectors[:known])
    else:
        rows = np.zeros((len(snapshot_keys), vectors.shape[1]), np.float16)
        rows[alive] = vectors[:known]
        table = VectorTable(snapshot_keys, rows, alive)
    dense = FaissDenseIndex(factory, search_parameters, table, index)
    dense.apply(np.empty(0, np.int64), keys[known:], vectors[known:])
    logger.info(
        "dense snapshot loaded vectors=%d removed_since=%d added_since=%d", known, len(alive) - known, len(keys) - known
    )
    return dense


def _read(path: Path, factory: str, dimension: int) -> tuple[Keys, Any]:
    """Reads a snapshot's keys and FAISS index, after its checksum: FAISS's reader may crash on damaged input."""
    size = path.stat().st_size - _DIGEST_BYTES
    with path.open("rb") as file:
        digest = hashlib.sha256()
        left = size
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        if size < len(_MAGIC) or file.read() != digest.digest():
            raise ValueError(f"{path.name} is damaged")
        file.seek(0)
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path.name} is of another version")
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        if (header["factory"], header["dimension"]) != (factory, dimension):
            raise ValueError(f"{path.name} holds a {header['factory']!r} index of dimension {header['dimension']}")
        keys = np.frombuffer(file.read(8 * header["rows"]), "<i8").astype(np.int64)
        index = faiss.read_index(_callbacks.PyCallbackIOReader(file.read))
        if index.ntotal != len(keys):
            raise ValueError(f"{path.name} holds {index.ntotal} vectors for {len(keys)} keys")
        return keys, index
