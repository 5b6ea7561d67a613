"""What a pooler in transaction mode does to those behind it, on connections to a real server."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import psycopg


class TransactionPooler:
    """Some sessions that outlive their users: each transaction gets the one that was free for the longest time.

    Args:
        url: The database.
    """

    def __init__(self, url: str) -> None:
        self.sessions = [psycopg.connect(url, autocommit=True) for _ in range(3)]
        self._free = deque(self.sessions)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for session in self.sessions:
            session.close()

    def connect(self) -> PooledConnection:
        """A client's connection."""
        return PooledConnection(self)

    @contextmanager
    def session(self) -> Iterator[psycopg.Connection[Any]]:
        """A session for one transaction."""
        session = self._free.popleft()
        try:
            yield session
        finally:
            self._free.append(session)


class PooledConnection:
    """What a store uses of psycopg's connection, of a client of a pooler."""

    def __init__(self, pooler: TransactionPooler) -> None:
        self._pooler = pooler
        self._session: psycopg.Connection[Any] | None = None
        self.isolation_level: psycopg.IsolationLevel | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing: the sessions stay."""

    def execute(self, *statement: Any) -> psycopg.Cursor[Any]:
        """Runs a statement in the open transaction, or else in one of its own."""
        if self._session is not None:
            return self._session.execute(*statement)
        with self._pooler.session() as session:
            return session.execute(*statement)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keeps one session until the transaction ends."""
        with self._pooler.session() as session:
            session.isolation_level = self.isolation_level
            self._session = session
            try:
                with session.transaction():
                    yield
            finally:
                self._session = None
