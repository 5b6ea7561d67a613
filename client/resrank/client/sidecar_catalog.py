"""Collections and aliases of a sidecar, by the one client of it."""

from __future__ import annotations

from collections.abc import Sequence

from resrank.client.sidecar import AsyncSidecar
from resrank.core.collection_names import check_collection_name
from resrank.core.errors import InvalidInputError
from resrank.core.limits import LARGEST_QUOTA
from resrank.core.sidecar.v1 import retrieval_pb2 as pb


class SidecarCatalog:
    """Makes, lists and removes collections and aliases.

    Methods raise what :class:`~resrank.client.sidecar.AsyncSidecar`'s do; a name that breaks the rule is refused before
    anything is sent.

    Args:
        sidecar: An open client; which collection it is about does not matter.
    """

    def __init__(self, sidecar: AsyncSidecar) -> None:
        self._sidecar = sidecar

    async def create(self, name: str, *, max_records: int = 0, max_bytes: int = 0) -> None:
        """Makes an empty collection.

        Args:
            name: Of no collection and no alias so far.
            max_records: What it may hold at most; 0 for no bound.
            max_bytes: Of ids, titles, texts, metadata and embeddings together; 0 for no bound.
        """
        check_collection_name("collection", name)
        for unit, bound in (("records", max_records), ("bytes", max_bytes)):
            if not 0 <= bound <= LARGEST_QUOTA:
                raise InvalidInputError(f"quota.{unit}", "out of range", limit=f"0 to {LARGEST_QUOTA}", value=bound)
        quota = pb.Quota(records=max_records, bytes=max_bytes)
        await self._sidecar.call("CreateCollection", pb.CreateCollectionRequest(collection=name, quota=quota))

    async def make_if_missing(self, name: str) -> None:
        """Makes an empty collection, without a bound, unless a collection or an alias has the name."""
        names = {collection.name for collection in await self.collections()}
        names |= {alias.name for alias in await self.aliases()}
        if name not in names:
            await self.create(name)

    async def collections(self) -> Sequence[pb.Collection]:
        """All collections, by name."""
        found: pb.ListCollectionsResponse = await self._sidecar.call("ListCollections", pb.ListCollectionsRequest())
        return found.collections

    async def drop(self, name: str) -> None:
        """Removes a collection with its records; refused for the default one, and while an alias names it."""
        check_collection_name("collection", name)
        await self._sidecar.call("DropCollection", pb.DropCollectionRequest(collection=name))

    async def set_alias(
        self, name: str, collection: str, *, triton: str = "", encoder_sha256: str = ""
    ) -> pb.Alias | None:
        """Makes an alias or points it elsewhere, from one request to the next.

        Args:
            name: The alias.
            collection: What it is to name; no alias.
            triton: ``host:port`` of the Triton to ask with it; empty for the one that callers know.
            encoder_sha256: The encoder behind that Triton; the alias stays as it was where the collection has another.

        Returns:
            The alias as it was before; None when it is new.
        """
        check_collection_name("alias.name", name)
        check_collection_name("alias.collection", collection)
        request = pb.SetAliasRequest(
            alias=pb.Alias(name=name, collection=collection, triton=triton), encoder_sha256=encoder_sha256
        )
        answer: pb.SetAliasResponse = await self._sidecar.call("SetAlias", request)
        return answer.previous if answer.HasField("previous") else None

    async def aliases(self) -> Sequence[pb.Alias]:
        """All aliases, by name."""
        found: pb.ListAliasesResponse = await self._sidecar.call("ListAliases", pb.ListAliasesRequest())
        return found.aliases

    async def delete_alias(self, name: str) -> None:
        """Removes an alias; its collection stays."""
        check_collection_name("alias.name", name)
        await self._sidecar.call("DeleteAlias", pb.DeleteAliasRequest(name=name))
