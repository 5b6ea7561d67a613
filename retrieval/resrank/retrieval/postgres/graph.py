"""HNSW indexes, built beside reads and writes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from resrank.retrieval.postgres.connections import Connections
from resrank.retrieval.postgres.schema import HNSW_INDEX, MAX_INDEXED_DIMENSION, Connection, collection_schema
from resrank.retrieval.postgres.state import CollectionState

logger = logging.getLogger(__name__)

QUIET_S = 5.0
"""An index is built when nothing was written for so long."""

PATIENCE_S = 900.0
"""At the latest after so long, however much is written."""

RETRY_S = 600.0
"""So long after a failure it is tried again."""

_LOCK = 0x48534E57  # "HNSW": of several sidecars one builds


class GraphBuilder:
    """Builds one index after the other in a thread of its own.

    Args:
        connections: To the database.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._not_before: dict[int, float] = {}
        self._closed = threading.Event()

    def build(self, state: CollectionState) -> None:
        """Begins to build a collection's index, unless one is being built or it failed a while ago; returns at once."""
        if state.encoder is None or state.encoder.dimension > MAX_INDEXED_DIMENSION:
            return
        with self._lock:
            early = time.monotonic() < self._not_before.get(state.number, 0.0)
            if early or self._closed.is_set() or self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, args=(state.number,), name="hnsw", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends what is being built; whoever opens the store next begins anew."""
        with self._lock:
            self._closed.set()
            thread = self._thread
            if self._connection is not None:
                self._connection.cancel_safe()
        if thread is not None:
            thread.join()

    def _run(self, number: int) -> None:
        try:
            with self._connections.alone() as connection:
                with self._lock:
                    self._connection = connection
                self._wait_for_quiet(connection, number)
                if not self._closed.is_set():
                    with self._connections.alone() as other, _turn(other, number) as ours:
                        if ours:
                            _build(connection, number)
        except psycopg.Error as error:
            if not self._closed.is_set():
                self._not_before[number] = time.monotonic() + RETRY_S
                logger.warning("no HNSW index yet, all vectors are compared: %s", error, extra={"collection": number})
        finally:
            with self._lock:
                self._connection = self._thread = None

    def _wait_for_quiet(self, connection: Connection, number: int) -> None:
        """Lets a collection be filled first: to add to a graph costs many times what storing does."""
        until = time.monotonic() + PATIENCE_S
        changes = None
        while time.monotonic() < until:
            row = connection.execute("SELECT changes FROM resrank.collections WHERE number = %s", (number,)).fetchone()
            if row == changes or self._closed.wait(QUIET_S):
                return
            changes = row


@contextmanager
def _turn(connection: Connection, number: int) -> Iterator[bool]:
    """Whether this is the one sidecar that builds a collection's index, for as long as this is held.

    An index is built outside of transactions, and a lock of the session would stay with a session that a pooler gives
    to the next one: so the lock is that of a transaction, which stays open on a connection of its own.
    """
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    with connection.transaction():
        found = connection.execute("SELECT pg_try_advisory_xact_lock(%s, %s::int4)", (_LOCK, number)).fetchone()
        # The last statement, since it leaves no snapshot behind: the build waits for all that are older than itself.
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        yield found == (True,)


def _build(connection: Connection, number: int) -> None:
    """Builds an index, unless it is there."""
    started = time.perf_counter()
    schema = collection_schema(number)
    # One whose building was cut short is there, and is not used.
    drop = sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}.{}").format(schema, sql.Identifier(HNSW_INDEX))
    (valid,) = connection.execute(
        "SELECT coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)), false)",
        (f"resrank_{number}.{HNSW_INDEX}",),
    ).fetchone() or (False,)
    if valid:
        return
    connection.execute(drop)
    connection.execute(
        sql.SQL("CREATE INDEX CONCURRENTLY {} ON {}.vectors USING hnsw (vector halfvec_cosine_ops)").format(
            sql.Identifier(HNSW_INDEX), schema
        )
    )
    seconds = round(time.perf_counter() - started, 2)
    logger.info("HNSW index ready", extra={"collection": number, "seconds": seconds})
