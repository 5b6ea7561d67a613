"""The collections of one database, and their aliases."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import psycopg
from psycopg import sql

from resrank.core.errors import CollectionNotFoundError
from resrank.core.limits import MAX_ALIASES, MAX_COLLECTIONS
from resrank.retrieval.catalog import Alias, CollectionInfo, HeldCollection
from resrank.retrieval.name_rules import (
    not_found,
    refuse_alias,
    refuse_more,
    refuse_named,
    refuse_no_collection,
    refuse_taken,
    require_alias_encoder,
)
from resrank.retrieval.postgres.connections import Connections
from resrank.retrieval.postgres.graph import GraphBuilder
from resrank.retrieval.postgres.schema import Connection, make_collection
from resrank.retrieval.postgres.store import PostgresStore, Tokenizers
from resrank.retrieval.quota import Quota, Usage
from resrank.retrieval.records import Encoder
from resrank.retrieval.settings import SidecarSettings
from resrank.retrieval.store_url import StoreUrl

logger = logging.getLogger(__name__)

_BESIDE_SEARCHES = 5  # connections for a writer, two backups, names, and what comes between
_DROP_WAIT = "5s"


def open_store(url: StoreUrl, settings: SidecarSettings) -> PostgresCatalog:
    """Opens the store of a ``postgresql://`` URL; what the entry point names.

    Raises:
        InvalidInputError: The URL is none, or the sidecar was told what is a local store's to know.
        RetrievalError: The database cannot be used.
    """
    return PostgresCatalog.open(url, size=settings.search_threads + _BESIDE_SEARCHES)


class PostgresCatalog:
    """One database; implements :class:`resrank.retrieval.catalog.Catalog`.

    Several sidecars may serve it at once: what one of them has acknowledged all others see. Whoever changes names takes
    turns at the table of aliases. A request that comes back to a collection which was dropped meanwhile ends there.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._tokenizers = Tokenizers()
        self._graphs = GraphBuilder(connections)
        self._stores: dict[int, PostgresStore] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, url: StoreUrl, *, size: int) -> Self:
        """Connects, and makes the tables in a new database.

        Args:
            url: The database.
            size: Connections at most.

        Raises:
            InvalidInputError: The URL is none.
            RetrievalError: The database cannot be reached or used.
        """
        catalog = cls(Connections(url, size))
        catalog._sweep()
        return catalog

    def announce(self, address: str, *, transient: bool) -> None:
        """Nothing: there is no folder."""

    def resolve(self, name: str) -> str:
        """What a name means, see :meth:`resrank.retrieval.catalog.Catalog.resolve`."""
        return self._resolve(name)[1]

    @contextmanager
    def collection(self, name: str) -> Iterator[HeldCollection]:
        """Finds a collection, see :meth:`resrank.retrieval.catalog.Catalog.collection`."""
        number, resolved = self._resolve(name)
        known = self._stores.keys()
        live = known if number in known else {row[0] for row in self._ask("SELECT number FROM resrank.collections")}
        with self._lock:
            for gone in known - live:  # dropped by another sidecar; numbers are never used again
                del self._stores[gone]
            store = self._stores.get(number)
            if store is None:
                store = PostgresStore(self._connections, number, self._tokenizers, self._graphs)
                self._stores[number] = store
        yield HeldCollection(resolved, store)

    def create(self, name: str, quota: Quota) -> None:
        """Makes a collection, see :meth:`resrank.retrieval.catalog.Catalog.create`."""
        with self._changing() as connection:
            refuse_taken(
                name,
                is_collection=_exists(connection, "collections", name),
                is_alias=_exists(connection, "aliases", name),
            )
            _refuse_more(connection, "collections", MAX_COLLECTIONS)
            row = connection.execute(
                "INSERT INTO resrank.collections (name, quota_records, quota_bytes) VALUES (%s, %s, %s) "
                "RETURNING number",
                (name, quota.records, quota.bytes),
            ).fetchone()
            assert row is not None
            make_collection(connection, row[0])
        logger.info("collection created", extra={"collection": name, "records": quota.records, "bytes": quota.bytes})

    def collections(self) -> list[CollectionInfo]:
        """All collections, by name."""
        rows = self._ask(
            "SELECT name, encoder_sha256, dimension, records, bytes, quota_records, quota_bytes "
            "FROM resrank.collections ORDER BY name"
        )
        return [
            CollectionInfo(
                name,
                Usage(None if sha256 is None else Encoder(sha256, dimension), records, bytes_, Quota(*bounds)),
            )
            for name, sha256, dimension, records, bytes_, *bounds in rows
        ]

    def drop(self, name: str) -> None:
        """Removes a collection, see :meth:`resrank.retrieval.catalog.Catalog.drop`."""
        with self._changing() as connection:
            refuse_no_collection(name, is_alias=_exists(connection, "aliases", name))
            named = connection.execute(
                "SELECT aliases.name FROM resrank.aliases JOIN resrank.collections ON collection = number "
                "WHERE collections.name = %s ORDER BY 1",
                (name,),
            ).fetchone()
            refuse_named(name, named[0] if named else None)
            gone = connection.execute("DELETE FROM resrank.collections WHERE name = %s RETURNING number", (name,))
            row = gone.fetchone()
            if row is None:
                raise not_found(name)
        with self._lock:
            self._stores.pop(row[0], None)
        logger.info("collection dropped", extra={"collection": name})
        self._sweep()

    def set_alias(self, alias: Alias, encoder_sha256: str | None) -> Alias | None:
        """Points an alias, see :meth:`resrank.retrieval.catalog.Catalog.set_alias`."""
        with self._changing() as connection:
            refuse_alias(
                alias,
                is_collection=_exists(connection, "collections", alias.name),
                onto_alias=_exists(connection, "aliases", alias.collection),
            )
            # Locked: a first batch may be binding it to an encoder.
            row = connection.execute(
                "SELECT number, encoder_sha256 FROM resrank.collections WHERE name = %s FOR UPDATE", (alias.collection,)
            ).fetchone()
            if row is None:
                raise not_found(alias.collection)
            number, found = row
            require_alias_encoder(alias, found, encoder_sha256)
            before = _aliases(connection, "WHERE aliases.name = %s", (alias.name,))
            if not before:
                _refuse_more(connection, "aliases", MAX_ALIASES)
            connection.execute(
                "INSERT INTO resrank.aliases (name, collection, triton) VALUES (%s, %s, %s) "
                "ON CONFLICT (name) DO UPDATE SET collection = excluded.collection, triton = excluded.triton",
                (alias.name, number, alias.triton),
            )
        logger.info(
            "alias set", extra={"alias": alias.name, "collection": alias.collection, "triton": alias.triton or None}
        )
        return before[0] if before else None

    def aliases(self) -> list[Alias]:
        """All aliases, by name."""
        with self._connections.reading() as connection:
            return _aliases(connection)

    def delete_alias(self, name: str) -> None:
        """Removes an alias, see :meth:`resrank.retrieval.catalog.Catalog.delete_alias`."""
        with self._changing() as connection:
            if not connection.execute("DELETE FROM resrank.aliases WHERE name = %s", (name,)).rowcount:
                raise CollectionNotFoundError(f"there is no alias {name!r}")
        logger.info("alias deleted", extra={"alias": name})

    def close(self) -> None:
        """Ends what is being built and closes all connections."""
        self._graphs.close()
        self._connections.close()
        self._tokenizers.close()

    def _resolve(self, name: str) -> tuple[int, str]:
        rows = self._ask(
            "SELECT number, name FROM resrank.collections WHERE name = %s UNION ALL "
            "SELECT number, collections.name FROM resrank.aliases JOIN resrank.collections ON collection = number "
            "WHERE aliases.name = %s",
            (name, name),
        )
        if not rows:
            raise not_found(name)
        ((number, resolved),) = rows
        return number, resolved

    def _ask(self, statement: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._connections.reading() as connection:
            return connection.execute(statement, parameters).fetchall()

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        with self._connections.writing() as connection:
            connection.execute("LOCK TABLE resrank.aliases IN SHARE ROW EXCLUSIVE MODE")
            yield connection

    def _sweep(self) -> None:
        """Removes the tables of collections that are no more, of a sidecar, too, that died in between. Never fails."""
        try:
            with self._connections.alone() as connection:
                leftovers = connection.execute(
                    r"SELECT nspname FROM pg_namespace WHERE nspname ~ '^resrank_\d+$' AND NOT EXISTS "
                    "(SELECT FROM resrank.collections WHERE 'resrank_' || number = nspname)"
                ).fetchall()
                for (schema,) in leftovers:
                    with connection.transaction():  # for which alone the setting holds: a session may be a pooler's
                        connection.execute("SELECT set_config('lock_timeout', %s, true)", (_DROP_WAIT,))
                        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
        except psycopg.Error as error:
            logger.warning("a dropped collection is not removed, the next start tries again: %s", error)


def _exists(connection: Connection, table: str, name: str) -> bool:
    statement = sql.SQL("SELECT 1 FROM {} WHERE name = %s").format(sql.Identifier("resrank", table))
    return connection.execute(statement, (name,)).fetchone() is not None


def _refuse_more(connection: Connection, table: str, limit: int) -> None:
    row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("resrank", table))).fetchone()
    if row is not None:
        refuse_more(table, limit, row[0])


def _aliases(connection: Connection, where: str = "", parameters: tuple[Any, ...] = ()) -> list[Alias]:
    rows = connection.execute(
        "SELECT aliases.name, collections.name, triton FROM resrank.aliases JOIN resrank.collections "
        f"ON collection = number {where} ORDER BY 1",
        parameters,
    )
    return [Alias(*row) for row in rows]
