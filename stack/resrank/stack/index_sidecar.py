"""The sidecar of an index folder, whoever runs it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from resrank.client.index_build import connected
from resrank.core.errors import RetrievalError
from resrank.core.sidecar.v1 import retrieval_pb2_grpc
from resrank.retrieval.lock import read_owner

_OWNER_WAIT_S = 30.0


@asynccontextmanager
async def sidecar_of(index: Path) -> AsyncIterator[retrieval_pb2_grpc.RetrievalServiceAsyncStub]:
    """The sidecar of an index folder: the one that owns it, or else one that runs in this process meanwhile.

    Args:
        index: The index folder; made if it does not exist.

    Yields:
        A stub connected to it.

    Raises:
        IndexFolderError: The folder is corrupt, foreign or not writable.
        RetrievalError: The owner does not answer.
    """
    address = await _owner_address(index)
    if address is not None:
        async with connected(address) as stub:
            yield stub
        return
    # Imported here: whoever only reads a running sidecar's index needs no FAISS.
    from resrank.retrieval.server import SidecarServer
    from resrank.retrieval.settings import SidecarSettings

    async with SidecarServer(SidecarSettings(index=index, port=0)) as sidecar, connected(sidecar.address) as stub:
        yield stub


async def _owner_address(index: Path) -> str | None:
    deadline = time.monotonic() + _OWNER_WAIT_S
    while (owner := read_owner(index)) is not None:
        if owner.address is not None:
            return owner.address
        if time.monotonic() > deadline:
            raise RetrievalError(f"process {owner.pid} owns {index} but does not serve it: stop it, or wait for it")
        await asyncio.sleep(0.1)
    return None
