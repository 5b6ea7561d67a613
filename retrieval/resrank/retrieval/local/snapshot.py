"""Snapshots of the dense index, so that a start neither reads vectors from the store nor builds an index of them.

Derived, checked, and thrown away when in doubt. Layout, little-endian: magic, length of the header (8 bytes), header
(JSON), zeros up to a page; keys (int64), checksums of the vectors (uint32), zeros; the vectors as :mod:`vector_segment`
has them in memory, prefix and fp16; the FAISS index, unless it is flat; sha256 of all before it (32 bytes). The vectors
are never read as a whole but mapped. The checksums tie the file to its store: another index with the same keys has
other vectors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from resrank.core.durability import flush, private
from resrank.retrieval.local.checksums import Checksums, of_vectors
from resrank.retrieval.local.dense import FaissDenseIndex
from resrank.retrieval.local.dense_device import DenseDevice
from resrank.retrieval.local.vector_segment import PREFIX_BYTES, VectorSegment, prefix_of
from resrank.retrieval.local.vector_table import VectorTable
from resrank.retrieval.records import Keys

logger = logging.getLogger(__name__)

SNAPSHOT_FILE = "dense.snapshot"
_callbacks: Any = faiss  # the readers and writers over Python functions, which its type stubs lack
_MAGIC = b"RESRANK-DENSE-3\n"
_DIGEST_BYTES = 32
_LENGTH_BYTES = 8
_PAGE = 4096
_BLOCK = 1 << 22
_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True, slots=True)
class _Content:
    """A snapshot as it lies in the file, from which all but the header is mapped."""

    factory: str
    dimension: int
    keys: Keys
    checksums: Checksums
    vectors: VectorSegment
    index: Any | None


def write(folder: Path, dense: FaissDenseIndex) -> None:
    """Writes a snapshot beside its final name, flushes it to the disk and renames it, so that it is whole or absent.

    Args:
        folder: The index folder.
        dense: The index; it must not change meanwhile.

    Raises:
        OSError: The disk refused; the previous snapshot stays.
    """
    table = dense.table
    header = json.dumps(
        {
            "factory": dense.factory,
            "dimension": table.dimension,
            "rows": table.rows,
            "unit": all(segment.unit for segment in table.segments),
            "flat": dense.index is None,
        }
    ).encode()
    temporary = folder / f"{SNAPSHOT_FILE}.tmp"
    digest = hashlib.sha256()
    try:
        with open(temporary, "wb", opener=private) as file:

            def write_hashed(data: bytes | memoryview) -> int:
                digest.update(data)
                return file.write(data)

            written = write_hashed(_MAGIC + len(header).to_bytes(_LENGTH_BYTES, "little") + header)
            written += write_hashed(bytes(-written % _PAGE))
            written += write_hashed(table.keys.astype("<i8").tobytes())
            for segment in table.segments:
                written += write_hashed(of_vectors(segment.vectors).astype("<u4").tobytes())
            write_hashed(bytes(-written % _PAGE))
            write_hashed(prefix_of(table.dimension, table.rows))
            for segment in table.segments:
                for start in range(0, segment.rows, _ROWS_AT_ONCE):
                    write_hashed(segment.vectors[start : start + _ROWS_AT_ONCE].astype("<f2").tobytes())
            if dense.index is not None:
                faiss.write_index(dense.index, _callbacks.PyCallbackIOWriter(write_hashed))
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / SNAPSHOT_FILE)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(folder)


def mapped(folder: Path, dense: FaissDenseIndex) -> FaissDenseIndex:
    """The index that was just written, with its vectors mapped from the file instead of in memory of their own.

    Raises:
        OSError: The file cannot be mapped.
        ValueError: It is not what was written.
    """
    content = _read(folder / SNAPSHOT_FILE, just_written=True)
    table = dense.table
    if not np.array_equal(content.keys, table.keys):
        raise ValueError("it is not what was written")
    return dense.over(VectorTable(table.keys.copy(), content.vectors, table.alive.copy(), content.checksums))


def restore(
    folder: Path,
    factory: str,
    search_parameters: str,
    dimension: int,
    keys: Keys,
    checksums: Checksums,
    load_vectors: Callable[[Keys, int], VectorSegment],
    *,
    last_key: int,
    device: DenseDevice | None = None,
) -> FaissDenseIndex | None:
    """Maps a snapshot and brings it up to date with the store.

    Args:
        folder: The index folder.
        factory: The kind of index wanted.
        search_parameters: FAISS search-time parameters.
        dimension: The store's dimension d.
        keys: The store's live keys, ascending.
        checksums: Their vectors' checksums, uint32 [n].
        load_vectors: Reads the store's vectors of its last keys, and of dimension d.
        last_key: The greatest key that the store has ever given.
        device: The GPU that searches too.

    Returns:
        The index, or None when there is no snapshot, it is damaged, of another kind, or disagrees with the store, or
        FAISS fails to extend it.
    """
    path = folder / SNAPSHOT_FILE
    if not path.exists():
        return None
    try:
        content = _read(path)
        if (content.factory, content.dimension) != (factory, dimension):
            raise ValueError(f"it holds a {content.factory!r} index of dimension {content.dimension}")
        last = _last(content.keys)
        if last > last_key:
            # The store was put back from a backup and will give these keys again: the file must not outlive this start.
            path.unlink()
        _require_of_store(content.keys, content.checksums, keys, checksums, last_key)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        logger.warning("dense snapshot not used, building the index anew: %s", error)
        return None
    known = int(np.searchsorted(keys, last, side="right"))
    alive = np.isin(content.keys, keys[:known], assume_unique=True)
    table = VectorTable(content.keys.astype(np.int64), content.vectors, alive, content.checksums)
    dense = FaissDenseIndex(factory, search_parameters, table, content.index, device)
    if known < len(keys):
        added = load_vectors(keys[known:], dimension).vectors
        try:
            dense.apply(np.empty(0, np.int64), keys[known:], added)
        except (RuntimeError, MemoryError) as error:
            logger.warning("dense snapshot not brought up to date, building the index anew: %s", error)
            return None
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
        content = _read(path)
        _require_of_store(content.keys, content.checksums, keys, checksums, last_key)
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


def _read(path: Path, *, just_written: bool = False) -> _Content:
    """Maps a file, after its digest: FAISS's reader may crash on damaged input.

    Where it was just written, the digest and FAISS's own part, which is in memory, are passed over.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size - _DIGEST_BYTES
        if size < len(_MAGIC) + _LENGTH_BYTES:
            raise ValueError(f"{path.name} is damaged")
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        whole = np.frombuffer(mapping, np.uint8)
        if not just_written:
            digest = hashlib.sha256()
            for start in range(0, size, _BLOCK):
                digest.update(whole[start : min(start + _BLOCK, size)].data)
            if whole[size:].tobytes() != digest.digest():
                raise ValueError(f"{path.name} is damaged")
        if whole[: len(_MAGIC)].tobytes() != _MAGIC:
            raise ValueError(f"{path.name} is of another version")
        begin = len(_MAGIC) + _LENGTH_BYTES
        end = begin + int.from_bytes(whole[len(_MAGIC) : begin].tobytes(), "little")
        header = json.loads(whole[begin:end].tobytes())
        rows, dimension = header["rows"], header["dimension"]
        keys_at = end + -end % _PAGE
        checksums_at = keys_at + 8 * rows
        vectors_at = checksums_at + 4 * rows
        vectors_at += -vectors_at % _PAGE
        index_at = vectors_at + PREFIX_BYTES + 2 * dimension * rows
        if whole[vectors_at : vectors_at + PREFIX_BYTES].tobytes() != prefix_of(dimension, rows):
            raise ValueError(f"{path.name} is of another release of FAISS")
        index = None
        if not header["flat"] and not just_written:
            file.seek(index_at)
            index = faiss.read_index(_callbacks.PyCallbackIOReader(file.read))
            if index.ntotal != rows:
                raise ValueError(f"{path.name} holds {index.ntotal} vectors for {rows} keys")
        return _Content(
            factory=header["factory"],
            dimension=dimension,
            keys=whole[keys_at:checksums_at].view("<i8"),
            checksums=whole[checksums_at : checksums_at + 4 * rows].view("<u4"),
            vectors=VectorSegment(whole[vectors_at:index_at], dimension, rows, unit=header["unit"]),
            index=index,
        )
