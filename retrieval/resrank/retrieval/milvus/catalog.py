"""The collections of one Milvus database, and their aliases."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from resrank.core.collection_names import DEFAULT_COLLECTION
from resrank.core.errors import CollectionNotFoundError, EncoderMismatchError, InvalidInputError
from resrank.core.limits import MAX_ALIASES, MAX_COLLECTIONS
from resrank.retrieval.catalog import Alias, CollectionInfo, HeldCollection
from resrank.retrieval.milvus.names import ALIAS, COLLECTION, FIELD, Names, milvus_name
from resrank.retrieval.milvus.server import MilvusServer
from resrank.retrieval.milvus.store import MilvusStore
from resrank.retrieval.name_rules import (
    not_found,
    refuse_alias,
    refuse_more,
    refuse_named,
    refuse_no_collection,
    refuse_taken,
    require_alias_encoder,
)
from resrank.retrieval.quota import NO_QUOTA, Quota, Usage
from resrank.retrieval.settings import SidecarSettings
from resrank.retrieval.store_url import StoreUrl

logger = logging.getLogger(__name__)


def open_store(url: StoreUrl, settings: SidecarSettings) -> MilvusCatalog:
    """Opens the store of a ``milvus://`` URL; what the entry point names.

    Raises:
        InvalidInputError: The URL is none.
        RetrievalError: The server cannot be reached or used.
    """
    return MilvusCatalog(MilvusServer(url))


class MilvusCatalog:
    """One database of a Milvus server; implements :class:`resrank.retrieval.catalog.Catalog`.

    Each name is one row: it changes as a whole, and all sidecars see that at once. Nothing holds several rows together:
    two that make a collection and an alias of one name at the same moment may both succeed; the collection then counts.

    Args:
        server: The connection, which is closed with this.
    """

    def __init__(self, server: MilvusServer) -> None:
        self._server = server
        self._names = Names(server)
        self._changing = threading.Lock()

    def announce(self, address: str, *, transient: bool) -> None:
        """Nothing: there is no folder."""

    def resolve(self, name: str) -> str:
        """What a name means, see :meth:`resrank.retrieval.catalog.Catalog.resolve`."""
        return self._resolve(name)[0]

    @contextmanager
    def collection(self, name: str) -> Iterator[HeldCollection]:
        """Finds a collection, see :meth:`resrank.retrieval.catalog.Catalog.collection`."""
        resolved, quota = self._resolve(name)
        yield HeldCollection(resolved, self._store(resolved, quota))

    def create(self, name: str, quota: Quota) -> None:
        """Makes a collection, see :meth:`resrank.retrieval.catalog.Catalog.create`.

        Raises:
            InvalidInputError: The quota bounds bytes, which Milvus does not count.
        """
        if quota.bytes:
            raise InvalidInputError("quota.bytes", "a Milvus store counts records alone: leave it at 0")
        with self._changing:
            refuse_taken(
                name, is_collection=self._quota(name) is not None, is_alias=self._names.read(ALIAS, name) is not None
            )
            refuse_more("collections", MAX_COLLECTIONS, len(self._names.all(COLLECTION)))
            self._clear(name)  # what is left of one whose dropping was cut short
            self._names.write({"records": quota.records}, COLLECTION, name)
        logger.info("collection created", extra={"collection": name, "records": quota.records})

    def collections(self) -> list[CollectionInfo]:
        """All collections, by name."""
        quotas = {name: Quota(records=facts["records"]) for name, facts in self._names.all(COLLECTION).items()}
        quotas[DEFAULT_COLLECTION] = NO_QUOTA
        found = []
        for name, quota in sorted(quotas.items()):
            described = self._store(name, quota).describe()
            found.append(CollectionInfo(name, Usage(described.encoder, described.record_count, 0, quota)))
        return found

    def drop(self, name: str) -> None:
        """Removes a collection, see :meth:`resrank.retrieval.catalog.Catalog.drop`."""
        with self._changing:
            aliases = self.aliases()
            refuse_no_collection(name, is_alias=any(alias.name == name for alias in aliases))
            if self._quota(name) is None:
                raise not_found(name)
            named = [alias.name for alias in aliases if alias.collection == name]
            refuse_named(name, named[0] if named else None)
            self._clear(name)
            self._names.delete(COLLECTION, name)  # last: a drop that is cut short can be repeated
        logger.info("collection dropped", extra={"collection": name})

    def _clear(self, name: str) -> None:
        self._server.drop(milvus_name(name))
        for field in self._names.all(FIELD, milvus_name(name)):
            self._names.delete(FIELD, milvus_name(name), field)

    def set_alias(self, alias: Alias, encoder_sha256: str | None) -> Alias | None:
        """Points an alias, see :meth:`resrank.retrieval.catalog.Catalog.set_alias`."""
        with self._changing:
            refuse_alias(
                alias,
                is_collection=self._quota(alias.name) is not None,
                onto_alias=self._names.read(ALIAS, alias.collection) is not None,
            )
            quota = self._quota(alias.collection)
            if quota is None:
                raise not_found(alias.collection)
            store = self._store(alias.collection, quota)
            bound = _require_encoder(alias, store, encoder_sha256)
            before = self._names.read(ALIAS, alias.name)
            if before is None:
                refuse_more("aliases", MAX_ALIASES, len(self._names.all(ALIAS)))
            self._names.write({"collection": alias.collection, "triton": alias.triton}, ALIAS, alias.name)
            try:
                # Once more: nothing holds off a first batch, which may have bound it to an encoder meanwhile.
                if not bound:
                    _require_encoder(alias, store, encoder_sha256)
            except EncoderMismatchError:
                if before is None:
                    self._names.delete(ALIAS, alias.name)
                else:
                    self._names.write(before, ALIAS, alias.name)
                raise
        logger.info(
            "alias set", extra={"alias": alias.name, "collection": alias.collection, "triton": alias.triton or None}
        )
        return None if before is None else Alias(alias.name, **before)

    def aliases(self) -> list[Alias]:
        """All aliases, by name."""
        return [Alias(name, **facts) for name, facts in sorted(self._names.all(ALIAS).items())]

    def delete_alias(self, name: str) -> None:
        """Removes an alias, see :meth:`resrank.retrieval.catalog.Catalog.delete_alias`."""
        with self._changing:
            if self._names.read(ALIAS, name) is None:
                raise CollectionNotFoundError(f"there is no alias {name!r}")
            self._names.delete(ALIAS, name)
        logger.info("alias deleted", extra={"alias": name})

    def close(self) -> None:
        """Closes the connection."""
        self._server.close()

    def _store(self, name: str, quota: Quota) -> MilvusStore:
        return MilvusStore(self._server, self._names, name, quota)

    def _quota(self, name: str) -> Quota | None:
        """What a collection may hold; None where there is none of that name."""
        if name == DEFAULT_COLLECTION:
            return NO_QUOTA
        facts = self._names.read(COLLECTION, name)
        return None if facts is None else Quota(records=facts["records"])

    def _resolve(self, name: str) -> tuple[str, Quota]:
        quota = self._quota(name)
        if quota is not None:
            return name, quota
        alias = self._names.read(ALIAS, name)
        quota = None if alias is None else self._quota(alias["collection"])
        if alias is None or quota is None:
            raise not_found(name)
        return alias["collection"], quota


def _require_encoder(alias: Alias, store: MilvusStore, encoder_sha256: str | None) -> bool:
    """Refuses a collection of another encoder than the alias's; tells whether it has one."""
    encoder = store.encoder
    require_alias_encoder(alias, None if encoder is None else encoder.sha256, encoder_sha256)
    return encoder is not None
