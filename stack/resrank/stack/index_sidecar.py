"""The sidecar of an index folder, whoever runs it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from resrank.client.sidecar import AsyncSidecar
from resrank.core.errors import IndexFolderError, RetrievalError
from resrank.retrieval.local.lock import read_owner
from resrank.retrieval.store_url import LOCAL, StoreUrl

_OWNER_WAIT_S = 30.0


@asynccontextmanager
async def sidecar_of(
    index: Path | StoreUrl, collection: str = "", *, to_fill: bool = False
) -> AsyncIterator[AsyncSidecar]:
    """The sidecar of a store: the one that owns an index folder, or else one that runs in this process meanwhile.

    Args:
        index: The index folder, made if it does not exist, or a store's URL.
        collection: Which of its collections, by name or alias; empty for the default one.
        to_fill: Whether what follows takes long: then an owner that ends with its own command is refused, since it
            would take this one with it.

    Yields:
        A client of it.

    Raises:
        InvalidInputError: The collection's name is none.
        IndexFolderError: The folder is corrupt, foreign, not writable, or filled by another command.
        RetrievalError: The owner, or the store's server, does not answer.
    """
    store = StoreUrl.local(index) if isinstance(index, Path) else index
    address = await _owner_address(store.folder, to_fill=to_fill) if store.scheme == LOCAL else None
    if address is not None:
        async with AsyncSidecar(address, collection=collection) as client:
            yield client
        return
    # Imported here: whoever only reads a running sidecar's index needs no FAISS.
    from resrank.retrieval.server import SidecarServer
    from resrank.retrieval.settings import SidecarSettings

    async with (
        SidecarServer(SidecarSettings(store, port=0, transient=True)) as sidecar,
        AsyncSidecar(sidecar.address, collection=collection) as client,
    ):
        yield client


async def _owner_address(index: Path, *, to_fill: bool) -> str | None:
    deadline = time.monotonic() + _OWNER_WAIT_S
    while (owner := read_owner(index)) is not None:
        if owner.address is not None:
            if to_fill and owner.transient:
                raise IndexFolderError(
                    f"index folder {index} is in the hands of another command, process {owner.pid}, which ends when it "
                    "is done: wait for that, or have a lasting sidecar serve the folder"
                )
            return owner.address
        if time.monotonic() > deadline:
            raise RetrievalError(f"process {owner.pid} owns {index} but does not serve it: stop it, or wait for it")
        await asyncio.sleep(0.1)
    return None
