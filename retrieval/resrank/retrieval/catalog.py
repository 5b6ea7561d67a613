"""The collections of one store and their aliases: the interface between the service and a kind of store.

Another engine is one more class with :class:`Catalog`'s methods, which hands out a
:class:`~resrank.retrieval.store.VectorStore` for each collection; the gRPC service knows nothing else.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from resrank.retrieval.quota import Quota, Usage
from resrank.retrieval.store import VectorStore


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection as a list shows it.

    Attributes:
        name: Its own name.
        usage: What it holds, and what it may.
    """

    name: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for a collection and for the Triton whose checkpoint made its vectors.

    Attributes:
        name: The alias.
        collection: A collection's own name, never another alias.
        triton: ``host:port`` of the Triton to ask; empty for the one that callers know.
    """

    name: str
    collection: str
    triton: str = ""


@dataclass(frozen=True, slots=True)
class HeldCollection:
    """A collection for the time of one request.

    Attributes:
        name: Its own name, also where it was asked for by an alias.
        store: Its records.
    """

    name: str
    store: VectorStore


class Catalog(Protocol):
    """Collections, isolated from each other, and aliases. Methods may be called from several threads at once.

    Names come checked (:func:`resrank.core.collection_names.check_collection_name`). What creates, drops, sets or
    deletes is durable when it returns, and all of it has happened or none, whenever the process dies.
    """

    def announce(self, address: str, *, transient: bool) -> None:
        """Tells whoever asks the store's folder where it is served; nothing where there is no folder.

        Args:
            address: Where the sidecar listens.
            transient: Whether it ends with the command that started it.
        """

    def resolve(self, name: str) -> str:
        """The collection that a name means at this moment.

        Args:
            name: A collection's, an alias's, or ``default``, which always exists.

        Raises:
            CollectionNotFoundError: Neither a collection nor an alias has the name.
        """

    def collection(self, name: str) -> AbstractContextManager[HeldCollection]:
        """Resolves a name and holds what it means, so that it can be used to the end even when it is dropped meanwhile.

        Args:
            name: As for :meth:`resolve`; both steps are one.

        Raises:
            CollectionNotFoundError: On entry: neither a collection nor an alias has the name.
        """

    def create(self, name: str, quota: Quota) -> None:
        """Makes an empty collection.

        Raises:
            CollectionExistsError: A collection or an alias has the name.
            QuotaExceededError: There are as many collections as there may be.
            StoreWriteError: The store refused; there is no collection.
        """

    def collections(self) -> list[CollectionInfo]:
        """All collections, by name."""

    def drop(self, name: str) -> None:
        """Removes a collection with its records. Requests that hold it end as if it were there.

        Args:
            name: Its own name.

        Raises:
            CollectionNotFoundError: There is no such collection.
            CollectionInUseError: It is ``default``, an alias names it, or the name is an alias's.
            StoreWriteError: The store refused; the collection stays.
        """

    def set_alias(self, alias: Alias, encoder_sha256: str | None) -> Alias | None:
        """Makes an alias or points it elsewhere, from one request to the next.

        Args:
            alias: The alias as it is to be.
            encoder_sha256: The encoder behind ``alias.triton``, if the caller tells.

        Returns:
            The alias as it was before; None when it is new.

        Raises:
            CollectionNotFoundError: The collection does not exist.
            CollectionExistsError: A collection has the alias's name.
            InvalidInputError: ``alias.collection`` is an alias itself.
            EncoderMismatchError: The collection belongs to another encoder.
            QuotaExceededError: There are as many aliases as there may be.
            StoreWriteError: The store refused; the alias stays as it was.
        """

    def aliases(self) -> list[Alias]:
        """All aliases, by name."""

    def delete_alias(self, name: str) -> None:
        """Removes an alias; its collection stays.

        Raises:
            CollectionNotFoundError: There is no such alias.
            StoreWriteError: The store refused; the alias stays.
        """

    def close(self) -> None:
        """Releases everything; nothing may be held any more."""
