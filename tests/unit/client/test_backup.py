"""A collection as a file, with a real sidecar in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from resrank.client.backup import read_backup, restore_backup, write_backup
from resrank.client.sidecar import AsyncSidecar
from resrank.client.sidecar_catalog import SidecarCatalog
from resrank.core.corpus import Passage
from resrank.core.errors import (
    CollectionNotFoundError,
    EncoderMismatchError,
    InvalidInputError,
    QuotaExceededError,
    RetrievalError,
)
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc
from resrank.retrieval import status
from resrank.retrieval.server import SidecarServer
from resrank.retrieval.service import MOST_BACKUPS
from resrank.retrieval.settings import SidecarSettings
from resrank.retrieval.store_url import StoreUrl

SHA = "d" * 64


def passages(count: int) -> list[Passage]:
    return [
        Passage(row, f"d{row:03}", f"Title {row}", f"Text « {row} »", {"lang": "en", "row": str(row)})
        for row in range(count)
    ]


@pytest.fixture
def server(tmp_path: Path) -> SidecarServer:
    return SidecarServer(SidecarSettings(StoreUrl.local(tmp_path / "index"), port=0))


async def test_a_backup_comes_back_as_it_was_stored(server: SidecarServer, tmp_path: Path) -> None:
    file = tmp_path / "docs.backup"
    vectors = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float16)
    async with server, AsyncSidecar(server.address, collection="docs") as sidecar:
        catalog = SidecarCatalog(sidecar)
        with pytest.raises(CollectionNotFoundError, match="no collection and no alias 'docs'"):
            await write_backup(sidecar, file)
        assert list(tmp_path.glob("*.backup*")) == []
        await catalog.create("docs")
        await sidecar.upsert(SHA, passages(300), vectors)
        written = await write_backup(sidecar, file)
        assert (written.records, written.encoder_sha256, written.dimension) == (300, SHA, 6)
        assert written == read_backup(file)
        assert file.stat().st_mode & 0o777 == 0o600
        async with AsyncSidecar(server.address, collection="copy") as copy:
            assert await restore_backup(copy, file) == written
            assert await copy.changed(passages(300)) == []
            stored = await copy.vectors([passage.id for passage in passages(300)])
            assert np.stack(list(stored.values())).tobytes() == vectors.tobytes()
            assert await write_backup(copy, tmp_path / "again.backup") == written
            assert await restore_backup(copy, file) == written  # nothing is left to do
            await copy.upsert(SHA, passages(301)[300:], vectors[:1])
            with pytest.raises(InvalidInputError, match="'copy' is not empty, and its record 'd300' is not one of the"):
                await restore_backup(copy, file)
            await copy.delete(["d300"])
        assert (tmp_path / "again.backup").read_bytes() == file.read_bytes()
        await catalog.set_alias("name", "copy")
        async with AsyncSidecar(server.address, collection="name") as named:
            with pytest.raises(InvalidInputError, match="'name' is an alias: restore into a collection"):
                await restore_backup(named, file)
        await catalog.create("small", max_records=100)
        async with AsyncSidecar(server.address, collection="small") as small:
            with pytest.raises(QuotaExceededError, match=r"too many records \(limit 100, got 256\)"):
                await restore_backup(small, file)
        assert {one.name: one.record_count for one in await catalog.collections()} == {
            "copy": 300,
            "default": 0,
            "docs": 300,
            "small": 0,
        }


def _truncated(content: bytearray) -> bytes:
    return bytes(content[: len(content) // 2])


def _without_last_byte(content: bytearray) -> bytes:
    return bytes(content[:-1])


def _longer(content: bytearray) -> bytes:
    return bytes(content) + b"\0"


def _flipped(content: bytearray) -> bytes:
    content[len(content) * 2 // 3] ^= 1
    return bytes(content)


def _endless_part(content: bytearray) -> bytes:
    content[17:25] = b"\xff" * 8
    return bytes(content)


def _without_end(content: bytearray) -> bytes:
    return bytes(content[:17]) + bytes(32)


@pytest.mark.parametrize("damage", [_truncated, _without_last_byte, _longer, _flipped, _endless_part, _without_end])
async def test_nothing_is_restored_of_a_file_that_is_not_whole(
    server: SidecarServer, tmp_path: Path, damage: Callable[[bytearray], bytes]
) -> None:
    file = tmp_path / "docs.backup"
    async with server, AsyncSidecar(server.address) as sidecar, AsyncSidecar(server.address, collection="b") as other:
        await sidecar.upsert(SHA, passages(40), np.ones((40, 6)))
        await write_backup(sidecar, file)
        file.write_bytes(damage(bytearray(file.read_bytes())))
        with pytest.raises(InvalidInputError, match=r"^file: .*docs.backup is damaged or not whole"):
            await restore_backup(other, file)
        assert [one.name for one in await SidecarCatalog(sidecar).collections()] == ["default"]


def test_what_is_no_backup(tmp_path: Path) -> None:
    for content in (b"", b"RESRANK", b"x" * 100):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(InvalidInputError, match="is no backup of a collection"):
            read_backup(tmp_path / "file")


class _Stopped(Exception):
    """What a program that is killed meets, as far as its sidecar can tell."""


@pytest.mark.parametrize("there", [True, False])
async def test_the_same_command_goes_on_with_a_restore_that_was_cut_short(
    server: SidecarServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    """In a collection that was there; and in a new one, whose restore was killed before it could drop it."""
    file = tmp_path / "docs.backup"
    vectors = np.random.default_rng(0).normal(size=(600, 6)).astype(np.float16)
    async with server, AsyncSidecar(server.address) as sidecar, AsyncSidecar(server.address, collection="b") as other:
        await sidecar.upsert(SHA, passages(600), vectors)
        written = await write_backup(sidecar, file)
        store, stored = other.upsert_records, 0

        async def stopping(*arguments: Any) -> Any:
            nonlocal stored
            stored += 1
            if stored == 3:
                raise _Stopped
            return await store(*arguments)

        async def killed(*arguments: Any) -> None:
            raise RetrievalError("nobody is left to drop it")

        monkeypatch.setattr(other, "upsert_records", stopping)
        if there:
            await SidecarCatalog(sidecar).create("b")
        else:
            monkeypatch.setattr(SidecarCatalog, "drop", killed)
        with pytest.raises(_Stopped):
            await restore_backup(other, file)
        assert 0 < (await other.describe()).record_count < 600
        stored = 3
        assert await restore_backup(other, file) == written
        assert stored == 4  # one batch was left


async def test_what_is_not_the_backups_is_never_taken_for_a_part_of_it(server: SidecarServer, tmp_path: Path) -> None:
    file = tmp_path / "docs.backup"
    async with server, AsyncSidecar(server.address) as sidecar:
        await sidecar.upsert(SHA, passages(40), np.ones((40, 6)))
        await write_backup(sidecar, file)
        for name, held, vector, encoder in (
            ("vector", passages(1), 2.0, SHA),
            ("text", [Passage(0, "d000", "Title 0", "Other", {"lang": "en", "row": "0"})], 1.0, SHA),
            ("metadata", [Passage(0, "d000", "Title 0", "Text « 0 »", {"lang": "en"})], 1.0, SHA),
            ("before", [Passage(0, "a", "", "", {})], 1.0, SHA),
            ("behind", [Passage(0, "z", "", "", {})], 1.0, SHA),
            ("encoder", passages(1), 1.0, "e" * 64),
        ):
            await SidecarCatalog(sidecar).create(name)
            async with AsyncSidecar(server.address, collection=name) as other:
                await other.upsert(encoder, held, np.full((1, 6), vector))
                with pytest.raises((InvalidInputError, EncoderMismatchError), match=f"'{name}' "):
                    await restore_backup(other, file)
                assert [id_ async for id_ in other.ids()] == [held[0].id]


async def test_whoever_reads_none_of_a_backup_does_not_keep_it(
    server: SidecarServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_SLOWEST_READER_S", 0.2)
    vector = np.ones(4, "<f2").tobytes()
    records = [pb.Record(id=f"{number}", text="x" * 60_000, embedding=vector) for number in range(400)]
    batches = [
        pb.UpsertRequest(encoder_sha256=SHA, dimension=4, records=records[start : start + 100])
        for start in range(0, 400, 100)
    ]
    async with server, grpc.aio.insecure_channel(server.address) as channel:
        stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        await stub.Upsert(iter(batches))
        copies = [stub.Backup(pb.BackupRequest()) for _ in range(MOST_BACKUPS)]
        for copy in copies:
            await copy.read()
        async with asyncio.timeout(20):  # until one gives up its place, and what it held
            while not await begins(stub):
                await asyncio.sleep(0.05)
        for copy in copies:
            with pytest.raises(grpc.aio.AioRpcError) as told:
                await read_all(copy)
            assert told.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def read_all(copy: Any) -> None:
    while await copy.read() is not grpc.aio.EOF:
        pass


async def begins(stub: Any) -> bool:
    """Whether a backup is let in."""
    try:
        return await stub.Backup(pb.BackupRequest()).read() is not grpc.aio.EOF
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return False
        raise


async def test_of_two_backups_onto_one_file_one_is_refused(server: SidecarServer, tmp_path: Path) -> None:
    file = tmp_path / "docs.backup"
    async with server, AsyncSidecar(server.address) as one, AsyncSidecar(server.address, collection="b") as other:
        await one.upsert(SHA, passages(600), np.ones((600, 6)))
        await SidecarCatalog(one).create("b")
        await other.upsert(SHA, passages(900), np.full((900, 6), 2.0))
        in_the_middle, go_on = asyncio.Event(), asyncio.Event()
        parts = one.backup

        async def slowly() -> AsyncIterator[pb.BackupPart]:
            async for part in parts():
                if part.records:
                    in_the_middle.set()
                    await go_on.wait()
                yield part

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(one, "backup", slowly)
            slow = asyncio.create_task(write_backup(one, file))
            await in_the_middle.wait()
            with pytest.raises(InvalidInputError, match=r"^file: another backup is being written to .*docs.backup"):
                await write_backup(other, file)
            go_on.set()
            assert (await slow).records == 600
        assert read_backup(file).records == 600
        (tmp_path / "docs.backup.unfinished").write_bytes(b"of one that was killed" * 100_000)
        assert (await write_backup(other, file)).records == 900
        assert read_backup(file).records == 900
        assert [path.name for path in tmp_path.glob("docs*")] == ["docs.backup"]


async def test_an_empty_collection_comes_back_empty(server: SidecarServer, tmp_path: Path) -> None:
    async with server, AsyncSidecar(server.address) as sidecar, AsyncSidecar(server.address, collection="b") as other:
        assert (await write_backup(sidecar, tmp_path / "file")).records == 0
        await restore_backup(other, tmp_path / "file")
        assert (await other.describe()).record_count == 0


async def test_a_disk_that_refuses_leaves_the_backup_there_was(server: SidecarServer, tmp_path: Path) -> None:
    file = tmp_path / "docs.backup"
    file.mkdir()  # cannot be replaced by a file
    async with server, AsyncSidecar(server.address) as sidecar:
        with pytest.raises(IsADirectoryError):
            await write_backup(sidecar, file)
    assert [path.name for path in tmp_path.iterdir() if path.name != "index"] == ["docs.backup"]
