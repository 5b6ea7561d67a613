"""A collection as one file: written while it is served, and restored only when it is whole.

Layout: a magic line, parts as the sidecar's ``Backup`` sends them, each behind its length (8 bytes little-endian), and
the sha256 of all before it (32 bytes).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from google.protobuf.message import DecodeError

from resrank.client.sidecar import AsyncSidecar
from resrank.client.sidecar_catalog import SidecarCatalog
from resrank.core.durability import flush, private
from resrank.core.errors import EncoderMismatchError, InvalidInputError, ResRankError, RetrievalError
from resrank.core.limits import MAX_GRPC_MESSAGE_BYTES
from resrank.core.sidecar.backups import RecordsDigest
from resrank.core.sidecar.v1 import retrieval_pb2 as pb

_MAGIC = b"RESRANK-BACKUP-1\n"
_LENGTH_BYTES = 8
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class BackupFacts:
    """What a backup holds.

    Attributes:
        records: How many.
        encoder_sha256: The encoder that their vectors come from; empty where nothing was ever stored.
        dimension: Of the vectors, 0 likewise.
        sha256: Of the records, 64 hex digits: equal for equal records.
    """

    records: int
    encoder_sha256: str
    dimension: int
    sha256: str


async def write_backup(sidecar: AsyncSidecar, path: Path) -> BackupFacts:
    """Writes a collection into a file, as it is at one moment; a file of that name is replaced when all is written.

    Args:
        sidecar: Of the collection.
        path: The file.

    Raises:
        InvalidInputError: Another backup is being written to that file at this moment.
        OSError: The disk refused; what was there before stays.
        RetrievalError: The sidecar failed, or what came is not what it sent; likewise.
    """
    with _replacing(path) as file:
        digest = hashlib.sha256()

        def write(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        write(_MAGIC)
        reading = _Reading()
        async for part in sidecar.backup():
            reading.take(part)
            data = part.SerializeToString()
            write(len(data).to_bytes(_LENGTH_BYTES, "little") + data)
        facts = reading.facts()
        if facts is None:
            raise RetrievalError("the retrieval sidecar's backup is not whole: try again")
        file.write(digest.digest())
    return facts


def read_backup(path: Path) -> BackupFacts:
    """Reads a backup to its end.

    Args:
        path: The file.

    Raises:
        InvalidInputError: It is no backup, or not whole, or damaged.
        OSError: It cannot be read.
    """
    reading = _Reading()
    for part in _parts(path):
        reading.take(part)
    facts = reading.facts()
    if facts is None:
        raise _damaged(path)
    return facts


async def restore_backup(sidecar: AsyncSidecar, path: Path) -> BackupFacts:
    """Restores a file into a collection that holds nothing else, and compares what is stored by its digest.

    A collection that does not exist is made. One that has some of the file's records, as a restore that was cut short
    leaves it, gets the others: the same call again makes it whole.

    Args:
        sidecar: Of the collection.
        path: The file; nothing is stored where it is not whole.

    Raises:
        InvalidInputError: The file is no whole backup, or the collection holds something else or is an alias; nothing
            is stored.
        RetrievalError: The sidecar refused or failed. A collection that was made for it is dropped; one that was there
            has what was stored so far, and the same call goes on from there.
    """
    facts = read_backup(path)
    catalog, name = SidecarCatalog(sidecar), sidecar.collection
    existing = {collection.name: collection for collection in await catalog.collections()}
    if any(alias.name == name for alias in await catalog.aliases()):
        raise InvalidInputError("collection", f"{name!r} is an alias: restore into a collection, and point it there")
    if name not in existing:
        await catalog.create(name)
    try:
        held = await _held(sidecar, path, facts) if name in existing else set()
        for part in _parts(path):
            if missing := [record for record in part.records if record.id not in held]:
                await sidecar.upsert_records(facts.encoder_sha256, facts.dimension, missing)
    except BaseException:
        if name not in existing:
            with suppress(ResRankError):
                await catalog.drop(name)
        raise
    # What is found to differ now, somebody else has stored: it is not dropped.
    await _compare(sidecar, facts)
    return facts


async def _held(sidecar: AsyncSidecar, path: Path, facts: BackupFacts) -> set[str]:
    """Ids of the backup's records that the collection has; refuses one that holds anything else."""
    held: set[str] = set()
    file = (record for part in _parts(path) for record in part.records)
    async with aclosing(sidecar.backup()) as stored:
        async for part in stored:
            if part.encoder_sha256 and facts.encoder_sha256 and part.encoder_sha256 != facts.encoder_sha256:
                raise EncoderMismatchError(
                    f"the collection {sidecar.collection!r} belongs to encoder {part.encoder_sha256}, the backup's "
                    f"vectors come from {facts.encoder_sha256}: restore into a new collection"
                )
            for record in part.records:
                # Both in the order of their ids, so that each is read once.
                if next((True for other in file if other == record), False):
                    held.add(record.id)
                else:
                    raise InvalidInputError(
                        "collection",
                        f"{sidecar.collection!r} is not empty, and its record {record.id!r} is not one of the backup: "
                        "restore into a new collection, or delete its records first",
                    )
    return held


async def _compare(sidecar: AsyncSidecar, facts: BackupFacts) -> None:
    reading = _Reading()
    async for part in sidecar.backup():
        reading.take(part)
    stored = reading.facts()
    if stored is None or stored.sha256 != facts.sha256:
        raise RetrievalError(
            f"the collection {sidecar.collection!r} is not what the backup holds: did another program write to it? "
            "Restore into a collection that nobody uses"
        )


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file beside a path, which takes that name when it is whole and on the disk; one writer has it at a time."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    file = _locked(unfinished, path)
    with file:
        try:
            file.truncate(0)  # of one that died
            yield file
            file.flush()
            os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    flush(path.absolute().parent)


def _locked(unfinished: Path, path: Path) -> IO[bytes]:
    while True:
        file = open(unfinished, "ab", opener=private)  # noqa: SIM115 - the lock lives as long as it is open
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise InvalidInputError(
                "file", f"another backup is being written to {path} at this moment: wait for it, or name another file"
            ) from error
        # Who had it before may have renamed or removed it since it was opened here: then this is not the file there.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), unfinished.stat()):
                return file
        file.close()


class _Reading:
    """Follows the parts of a backup."""

    def __init__(self) -> None:
        self._digest = RecordsDigest()
        self._first: pb.BackupPart | None = None
        self._last: bytes = b""
        self._records = 0

    def take(self, part: pb.BackupPart) -> None:
        """Takes the next part."""
        if self._first is None:
            self._first = part
        self._records += len(part.records)
        self._digest.add(part.records)
        self._last = part.sha256

    def facts(self) -> BackupFacts | None:
        """What it all was; None where the end is missing or does not fit the rest."""
        if self._first is None or self._last != self._digest.value():
            return None
        return BackupFacts(self._records, self._first.encoder_sha256, self._first.dimension, self._last.hex())


def _parts(path: Path) -> Iterator[pb.BackupPart]:
    """The parts of a file, one after the other; whether they are right is known at the end alone."""
    with path.open("rb") as file:
        left = path.stat().st_size - _DIGEST_BYTES - len(_MAGIC)
        digest = hashlib.sha256()

        def read(size: int) -> bytes:
            data = file.read(size)
            digest.update(data)
            return data

        if left < 0 or read(len(_MAGIC)) != _MAGIC:
            raise InvalidInputError("file", f"{path} is no backup of a collection")
        while left > 0:
            size = int.from_bytes(read(_LENGTH_BYTES), "little")
            left -= _LENGTH_BYTES + size
            if left < 0 or size > MAX_GRPC_MESSAGE_BYTES:
                raise _damaged(path)
            try:
                yield pb.BackupPart.FromString(read(size))
            except DecodeError as error:
                raise _damaged(path) from error
        if file.read() != digest.digest():
            raise _damaged(path)


def _damaged(path: Path) -> InvalidInputError:
    return InvalidInputError("file", f"{path} is damaged or not whole: nothing was restored; take another backup")
