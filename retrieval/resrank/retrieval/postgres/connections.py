"""Connections to PostgreSQL: how they are made, kept and lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from pgvector.psycopg import register_vector
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from resrank.core.errors import CollectionNotFoundError, InvalidInputError, RetrievalError
from resrank.retrieval.errors import StoreUnavailableError, StoreWriteError
from resrank.retrieval.postgres.schema import Connection, prepare
from resrank.retrieval.store_url import HIDDEN, StoreUrl

logger = logging.getLogger(__name__)

LOCK_WAIT_S = 30.0
"""So long a writer waits for its turn, and for the next step of one whose sidecar stands still."""

_WAIT_S = 2.0
_TRIES_S = 2.0  # then the next request begins to try anew, and need not wait for a time that has grown for long
_REFUSED_WRITES = (errors.DiskFull, errors.ReadOnlySqlTransaction, errors.IoError, errors.InsufficientPrivilege)
_OPTIONS: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}
"""Nothing is prepared: each plan is made for its parameters, and poolers that hand connections round are no harm."""


_DEFAULTS: dict[str, Any] = {
    "application_name": "resrank",
    "connect_timeout": 5,
    # A server whose machine is gone says nothing; without these that is noticed after hours.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""What the URL may say otherwise."""


class Connections:
    """A pool of connections to one database, which comes back by itself when the server does.

    Args:
        url: The database.
        size: Connections at most.

    Raises:
        InvalidInputError: libpq does not understand the URL.
        RetrievalError: The server cannot be reached, or lets nobody in.
    """

    def __init__(self, url: StoreUrl, size: int) -> None:
        self.url = url
        self._conninfo = _conninfo(url)
        with self.translated("connect to"), psycopg.connect(self._conninfo, **_OPTIONS) as connection:
            prepare(connection)
        self._pool = ConnectionPool(
            self._conninfo,
            kwargs=_OPTIONS,
            min_size=1,
            max_size=size,
            timeout=_WAIT_S,
            reconnect_timeout=_TRIES_S,
            configure=_configure,
            check=ConnectionPool.check_connection,  # one that broke is replaced before anybody meets it
            name="store",
            open=True,
        )

    def alone(self) -> Connection:
        """A connection outside the pool, for what takes long; its errors are psycopg's."""
        connection = psycopg.connect(self._conninfo, **_OPTIONS)
        _configure(connection)
        return connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one moment of the database throughout.

        Raises:
            StoreUnavailableError: The server does not answer, or went away.
        """
        with self.translated("read"), self._pool.connection() as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            with connection.transaction():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is durable when this ends, and undone when that is by an exception.

        What was acknowledged must be on the disk: ``synchronous_commit`` is switched on, and a setting that promises
        more is left alone.

        Raises:
            StoreUnavailableError: The server does not answer, or went away.
            StoreWriteError: It refused.
        """
        with self.translated("write to"), self._pool.connection() as connection:
            connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            connection.read_only = False
            with connection.transaction():
                connection.execute(
                    "SELECT set_config('lock_timeout', %s, true), "
                    "set_config('idle_in_transaction_session_timeout', %s, true)",
                    (f"{LOCK_WAIT_S}s", f"{LOCK_WAIT_S}s"),
                )
                # In each transaction: behind a pooler the next one may run in another session.
                connection.execute(
                    "SELECT set_config('synchronous_commit', 'on', true) "
                    "WHERE current_setting('synchronous_commit') = 'off'"
                )
                yield connection

    @contextmanager
    def translated(self, action: str) -> Iterator[None]:
        """Turns psycopg's errors into the sidecar's, which never hold the password."""
        try:
            yield
        except (PoolTimeout, PoolClosed) as error:
            raise StoreUnavailableError(
                f"the store {self.url} gives no connection: check that its server runs, or send less at once"
            ) from error
        except (errors.UndefinedTable, errors.InvalidSchemaName) as error:
            raise CollectionNotFoundError("the collection was dropped meanwhile") from error
        except _REFUSED_WRITES as error:
            raise StoreWriteError(
                f"the store {self.url} refused a write ({self._words(error)}): nothing was stored"
            ) from error
        except errors.ProgramLimitExceeded as error:  # of psycopg's operational errors, and the same at each try
            raise RetrievalError(f"cannot {action} the store {self.url}: {self._words(error)}") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise StoreUnavailableError(f"cannot {action} the store {self.url}: {self._words(error)}") from error
        except psycopg.Error as error:
            raise RetrievalError(f"cannot {action} the store {self.url}: {self._words(error)}") from error

    def close(self) -> None:
        """Closes all connections; none may be in use."""
        self._pool.close()

    def _words(self, error: psycopg.Error) -> str:
        words = " ".join(str(error).split()) or type(error).__name__
        password = self.url.password
        return words.replace(password, HIDDEN) if password else words


def _conninfo(url: StoreUrl) -> str:
    try:
        given = conninfo_to_dict(url.secret)
    except psycopg.ProgrammingError:  # whose words repeat parts of the URL
        raise InvalidInputError(
            "store", "is no URL that libpq understands: postgresql://USER:PASSWORD@HOST:PORT/DATABASE?OPTION=VALUE"
        ) from None
    return make_conninfo(**(_DEFAULTS | given))


def _configure(connection: Connection) -> None:
    register_vector(connection)
    # A sidecar whose machine is gone does not keep its turn to write.
    connection.execute(
        "SELECT set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false), "
        "set_config('tcp_keepalives_count', '3', false)"
    )
