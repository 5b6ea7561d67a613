"""A collection as a file, with a real sidecar in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resrank.client.backup import read_backup, restore_backup, write_backup
from resrank.client.sidecar import AsyncSidecar
from resrank.client.sidecar_catalog import SidecarCatalog
from resrank.core.corpus import Passage
from resrank.core.errors import CollectionNotFoundError, InvalidInputError, QuotaExceededError
from resrank.retrieval.server import SidecarServer
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
            with pytest.raises(InvalidInputError, match=r"'copy' is not empty, in records \(limit 0, got 300\)"):
                await restore_backup(copy, file)
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
