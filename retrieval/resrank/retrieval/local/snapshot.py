"""Snapshots of the dense index, so that a start need not build it: derived, checked, and thrown away when in doubt.

Layout: magic, length of the header (8 bytes little-endian), header (JSON), keys (int64 little-endian), checksums of the
vectors (uint32 little-endian), the FAISS index, sha256 of all before it (32 bytes). The checksums tie it to its store:
another index with the same keys has other vectors.
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

from resrank.core.durability import flush, private
from resrank.retrieval.local.checksums import Checksums, of_vectors
from resrank.retrieval.local.dense import FaissDenseIndex
from resrank.retrieval.local.vector_table import VectorTable
from resrank.retrieval.records import HalfMatrix, Keys

logger = logging.getLogger(__name__)

SNAPSHOT_FILE = "dense.snapshot"
_callbacks: Any = faiss  # the readers and writers over Python functions, which its type stubs lack
_MAGIC = b"RESRANK-DENSE-2\n"
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
        with open(temporary, "wb", opener=private) as file:

            def write_hashed(data: bytes) -> int:
                digest.update(data)
                return file.write(data)

            write_hashed(_MAGIC + len(header).to_bytes(8, "little") + header)
            write_hashed(table.keys.astype("<i8").tobytes())
            write_hashed(of_vectors(table.vectors).astype("<u4").tobytes())
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
    folder: Path,
    factory: str,
    search_parameters: str,
    keys: Keys,
    vectors: HalfMatrix,
    checksums: Checksums,
    *,
    last_key: int,
) -> FaissDenseIndex | None:
    """Reads a snapshot and brings it up to date with the store.

    Args:
        folder: The index folder.
        factory: The kind of index wanted.
        search_parameters: FAISS search-time parameters.
        keys: The store's live keys, ascending.
        vectors: Their vectors, fp16 [n, d].
        checksums: Their checksums, uint32 [n].
        last_key: The greatest key that the store has ever given.

    Returns:
        The index, or None when there is no snapshot, it is damaged, of another kind, or disagrees with the store.
    """
    path = folder / SNAPSHOT_FILE
    if not path.exists():
        return None
    try:
        header, snapshot_keys, snapshot_checksums, index = _read(path)
        if (header["factory"], header["dimension"]) != (factory, vectors.shape[1]):
            raise ValueError(f"it holds a {header['factory']!r} index of dimension {header['dimension']}")
        last = _last(snapshot_keys)
        if last > last_key:
            # The store was put back from a backup and will give these keys again: the file must not outlive this start.
            path.unlink()
        _require_of_store(snapshot_keys, snapshot_checksums, keys, checksums, last_key)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        logger.warning("dense snapshot not used, building the index anew: %s", error)
        return None
    known = int(np.searchsorted(keys, last, side="right"))
    alive = np.isin(snapshot_keys, keys[:known], assume_unique=True)
    if alive.all():
        table = VectorTable(snapshot_keys, vectors[:known])
    else:
        rows = np.zeros((len(snapshot_keys), vectors.shape[1]), np.float16)
        rows[alive] = vectors[:known]
        table = VectorTable(snapshot_keys, rows, alive)
    dense = FaissDenseIndex(factory, search_parameters, table, index)
    dense.apply(np.empty(0, np.int64), keys[known:], vectors[known:])
    logger.info(
        "dense snapshot loaded",
        extra={"vectors": int(known), "removed_since": len(alive) - int(known), "added_since": len(keys) - int(known)},
    )
    return dense


def problem(folder: Path, keys: Keys, checksums: Checksums, *, last_key: int) -> str | None:
    """Says why the snapshot could not be used with a store; None when it can, or there is none.

    Args:
        folder: The index folder.
        keys: The store's live keys, ascending.
        checksums: Their vectors' checksums, uint32 [n].
        last_key: The greatest key that the store has ever given.
    """
    path = folder / SNAPSHOT_FILE
    if not path.exists():
        return None
    try:
        _, snapshot_keys, snapshot_checksums, _ = _read(path)
        _require_of_store(snapshot_keys, snapshot_checksums, keys, checksums, last_key)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        return str(error)
    return None


def _last(keys: Keys) -> int:
    return int(keys[-1]) if len(keys) else 0


def _require_of_store(
    snapshot_keys: Keys, snapshot_checksums: Checksums, keys: Keys, checksums: Checksums, last_key: int
) -> None:
    if _last(snapshot_keys) > last_key:
        raise ValueError("it is newer than the store")
    known = int(np.searchsorted(keys, _last(snapshot_keys), side="right"))
    alive = np.isin(snapshot_keys, keys[:known], assume_unique=True)
    if alive.sum() != known:
        raise ValueError("it lacks records that the store has")
    if not np.array_equal(snapshot_checksums[alive], checksums[:known]):
        raise ValueError("it is of other vectors than the store's")


def _read(path: Path) -> tuple[dict[str, Any], Keys, Checksums, Any]:
    """Reads header, keys, checksums and FAISS index, after the digest: FAISS's reader may crash on damaged input."""
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
        keys = np.frombuffer(file.read(8 * header["rows"]), "<i8").astype(np.int64)
        checksums = np.frombuffer(file.read(4 * header["rows"]), "<u4").astype(np.uint32)
        index = faiss.read_index(_callbacks.PyCallbackIOReader(file.read))
        if index.ntotal != len(keys):
            raise ValueError(f"{path.name} holds {index.ntotal} vectors for {len(keys)} keys")
        return header, keys, checksums, index
