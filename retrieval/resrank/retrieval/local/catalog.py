"""The collections of one index folder: the folder itself is the default one, the others lie below it."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from resrank.core.collection_names import DEFAULT_COLLECTION
from resrank.core.durability import flush
from resrank.core.errors import (
    CollectionNotFoundError,
    IndexFolderError,
)
from resrank.core.limits import MAX_ALIASES, MAX_COLLECTIONS
from resrank.retrieval.catalog import Alias, CollectionInfo, HeldCollection
from resrank.retrieval.errors import StoreWriteError
from resrank.retrieval.local.catalog_file import COLLECTIONS_FOLDER, CatalogFile
from resrank.retrieval.local.schema import make_store
from resrank.retrieval.local.store import LocalVectorStore
from resrank.retrieval.name_rules import (
    not_found,
    refuse_alias,
    refuse_more,
    refuse_named,
    refuse_no_collection,
    refuse_taken,
    require_alias_encoder,
)
from resrank.retrieval.quota import Quota
from resrank.retrieval.settings import CPU

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Opened:
    """A collection that is open.

    Attributes:
        store: Its records.
        folder: Its folder's name; empty for the default one's.
        users: Requests that hold it.
        dropped: Whether it goes when the last of them has ended.
    """

    store: LocalVectorStore
    folder: str = ""
    users: int = 0
    dropped: bool = False


class LocalCatalog:
    """One index folder with all its collections; implements :class:`resrank.retrieval.catalog.Catalog`.

    Each collection is an index folder of its own, with its own lock. The default one's is the whole folder's: without
    it nobody comes to the others.
    """

    def __init__(
        self,
        folder: Path,
        opened: dict[str, _Opened],
        file: CatalogFile,
        dense_index: str,
        dense_search_parameters: str,
        dense_device: str,
    ) -> None:
        self._folder = folder
        self._opened = opened
        self._file = file
        self._dense_index = dense_index
        self._dense_device = dense_device
        self._dense_search_parameters = dense_search_parameters
        self._aliases = file.aliases()
        self._names = threading.Lock()
        """Held for moments: whoever has it sees all names as they are."""
        self._changing = threading.Lock()
        """Held by the one who changes names, disk included."""

    @classmethod
    def open(
        cls, folder: Path, *, dense_index: str = "Flat", dense_search_parameters: str = "", dense_device: str = CPU
    ) -> Self:
        """Takes an index folder with all its collections, and removes what a dead process left half made or removed.

        Args:
            folder: The index folder, made if need be.
            dense_index: FAISS index_factory string, of every collection.
            dense_search_parameters: FAISS search-time parameters.
            dense_device: Where vectors are searched: ``cpu``, ``gpu`` or ``gpu:N``.

        Returns:
            The open catalog.

        Raises:
            IndexFolderError: The folder, or one of its collections, is corrupt, foreign, not writable or owned by
                another process.
            InvalidInputError: FAISS does not know ``dense_index`` or ``dense_search_parameters``.
        """
        folder = folder.absolute()
        with ExitStack() as undone:

            def opened_store(path: Path) -> LocalVectorStore:
                store = LocalVectorStore.open(
                    path,
                    dense_index=dense_index,
                    dense_search_parameters=dense_search_parameters,
                    dense_device=dense_device,
                )
                undone.callback(store.close)
                return store

            opened = {DEFAULT_COLLECTION: _Opened(opened_store(folder))}
            file = CatalogFile.open(folder)
            undone.callback(file.close)
            for leftover in file.leftovers():
                logger.info("removing what is left of a collection", extra={"folder": leftover})
                try:
                    _remove(folder, leftover, file)
                except StoreWriteError as error:  # of use to nobody, and in nobody's way
                    logger.warning("what is left of a collection is not removed, the next start tries again: %s", error)
            for name, place in file.collections().items():
                path = folder / COLLECTIONS_FOLDER / place
                if not path.is_dir():
                    raise IndexFolderError(
                        f"the collection {name!r} is lost: restore {path}, or make an empty folder there to go on with "
                        "an empty collection"
                    )
                opened[name] = _Opened(opened_store(path), place)
            undone.pop_all()
        return cls(folder, opened, file, dense_index, dense_search_parameters, dense_device)

    def announce(self, address: str, *, transient: bool) -> None:
        """Writes into the folder's lock file where it is served, and whether that ends with a command."""
        self._opened[DEFAULT_COLLECTION].store.announce(address, transient=transient)

    def resolve(self, name: str) -> str:
        """What a name means, see :meth:`resrank.retrieval.catalog.Catalog.resolve`."""
        with self._names:
            return self._resolve(name)

    @contextmanager
    def collection(self, name: str) -> Iterator[HeldCollection]:
        """Holds a collection, see :meth:`resrank.retrieval.catalog.Catalog.collection`."""
        with self._names:
            resolved = self._resolve(name)
            collection = self._opened[resolved]
            collection.users += 1
        try:
            yield HeldCollection(resolved, collection.store)
        finally:
            with self._names:
                collection.users -= 1
                last = collection.dropped and not collection.users
            if last:
                self._discard(collection)

    def create(self, name: str, quota: Quota) -> None:
        """Makes a collection, see :meth:`resrank.retrieval.catalog.Catalog.create`."""
        with self._changing:
            refuse_taken(name, is_collection=name in self._opened, is_alias=name in self._aliases)
            refuse_more("collections", MAX_COLLECTIONS, len(self._opened))
            place = self._free_folder(name)
            self._file.begin_collection(place)
            try:
                store = self._made(place, quota)
                try:
                    self._file.add_collection(name, place)
                except BaseException:
                    store.close()
                    raise
            except BaseException:
                with suppress(StoreWriteError):  # the next start removes it
                    _remove(self._folder, place, self._file)
                raise
            with self._names:
                self._opened[name] = _Opened(store, place)
        logger.info("collection created", extra={"collection": name, "records": quota.records, "bytes": quota.bytes})

    def collections(self) -> list[CollectionInfo]:
        """All collections, by name."""
        with self._names:
            opened = sorted(self._opened.items())
        return [CollectionInfo(name, collection.store.usage()) for name, collection in opened]

    def drop(self, name: str) -> None:
        """Removes a collection, see :meth:`resrank.retrieval.catalog.Catalog.drop`."""
        with self._changing:
            refuse_no_collection(name, is_alias=name in self._aliases)
            collection = self._opened.get(name)
            if collection is None:
                raise not_found(name)
            names = [alias.name for alias in self._aliases.values() if alias.collection == name]
            refuse_named(name, names[0] if names else None)
            self._file.remove_collection(name, collection.folder)
            with self._names:
                del self._opened[name]
                collection.dropped = True
                unused = not collection.users
        if unused:
            self._discard(collection)
        logger.info("collection dropped", extra={"collection": name})

    def set_alias(self, alias: Alias, encoder_sha256: str | None) -> Alias | None:
        """Points an alias, see :meth:`resrank.retrieval.catalog.Catalog.set_alias`."""
        with self._changing:
            refuse_alias(alias, is_collection=alias.name in self._opened, onto_alias=alias.collection in self._aliases)
            collection = self._opened.get(alias.collection)
            if collection is None:
                raise not_found(alias.collection)
            previous = self._aliases.get(alias.name)
            if previous is None:
                refuse_more("aliases", MAX_ALIASES, len(self._aliases))
            # Held: a first batch may be binding it to an encoder.
            with collection.store.settled_encoder() as encoder:
                require_alias_encoder(alias, None if encoder is None else encoder.sha256, encoder_sha256)
                self._file.set_alias(alias)
                with self._names:
                    self._aliases[alias.name] = alias
        logger.info(
            "alias set", extra={"alias": alias.name, "collection": alias.collection, "triton": alias.triton or None}
        )
        return previous

    def aliases(self) -> list[Alias]:
        """All aliases, by name."""
        with self._names:
            return sorted(self._aliases.values(), key=lambda alias: alias.name)

    def delete_alias(self, name: str) -> None:
        """Removes an alias, see :meth:`resrank.retrieval.catalog.Catalog.delete_alias`."""
        with self._changing:
            if name not in self._aliases:
                raise CollectionNotFoundError(f"there is no alias {name!r}")
            self._file.delete_alias(name)
            with self._names:
                del self._aliases[name]
        logger.info("alias deleted", extra={"alias": name})

    def close(self) -> None:
        """Saves what makes the next start quick and gives the folder back."""
        with self._changing:
            # The default one last: its lock is the whole folder's.
            for collection in reversed(self._opened.values()):
                collection.store.close()
            self._file.close()

    def _resolve(self, name: str) -> str:
        alias = self._aliases.get(name)
        resolved = name if alias is None else alias.collection
        if resolved not in self._opened:
            raise not_found(name)
        return resolved

    def _free_folder(self, name: str) -> str:
        """The collection's name, or with a number behind it where a dropped one of that name is still in use."""
        folder, number = name, 1
        while (self._folder / COLLECTIONS_FOLDER / folder).exists():
            number += 1
            folder = f"{name}~{number}"  # no name has this sign
        return folder

    def _made(self, place: str, quota: Quota) -> LocalVectorStore:
        path = self._folder / COLLECTIONS_FOLDER / place
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.mkdir(mode=0o700)
            make_store(path, quota)
            flush(path.parent)
            flush(self._folder)
        except (OSError, sqlite3.Error) as error:
            raise StoreWriteError(f"the disk refused to make {path} ({error}): there is no collection") from error
        return LocalVectorStore.open(
            path,
            dense_index=self._dense_index,
            dense_search_parameters=self._dense_search_parameters,
            dense_device=self._dense_device,
        )

    def _discard(self, collection: _Opened) -> None:
        """Removes a dropped collection that nobody holds any more."""
        collection.store.abandon()
        try:
            with self._changing:
                _remove(self._folder, collection.folder, self._file)
        except StoreWriteError as error:
            logger.warning("a dropped collection is not removed, the next start tries again: %s", error)


def _remove(folder: Path, place: str, file: CatalogFile) -> None:
    path = folder / COLLECTIONS_FOLDER / place
    try:
        if path.exists():
            shutil.rmtree(path)
    except OSError as error:
        raise StoreWriteError(f"the disk refused to remove {path} ({error})") from error
    file.forget(place)
