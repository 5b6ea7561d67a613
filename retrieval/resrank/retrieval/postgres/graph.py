"""HNSW indexes, built beside reads and writes."""

from __future__ import annotations

import logging
import threading
import time

import psycopg
from psycopg import sql

from resrank.retrieval.postgres.connections import Connections
from resrank.retrieval.postgres.schema import HNSW_INDEX, MAX_INDEXED_DIMENSION, Connection, collection_schema
from resrank.retrieval.postgres.state import CollectionState

logger = logging.getLogger(__name__)

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
        self._failed: set[int] = set()
        self._closed = False

    def build(self, state: CollectionState) -> None:
        """Begins to build a collection's index, unless one is being built or it failed before; returns at once."""
        if state.encoder is None or state.encoder.dimension > MAX_INDEXED_DIMENSION or state.number in self._failed:
            return
        with self._lock:
            if self._closed or self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, args=(state.number,), name="hnsw", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends what is being built; the next start begins anew."""
        with self._lock:
            self._closed = True
            thread = self._thread
            if self._connection is not None:
                self._connection.cancel_safe()
        if thread is not None:
            thread.join()

    def _run(self, number: int) -> None:
        started = time.perf_counter()
        try:
            with self._connections.alone() as connection:
                with self._lock:
                    if self._closed:
                        return
                    self._connection = connection
                if _build(connection, number):
                    seconds = round(time.perf_counter() - started, 2)
                    logger.info("HNSW index ready", extra={"collection": number, "seconds": seconds})
        except psycopg.Error as error:
            if not self._closed:
                self._failed.add(number)
                logger.warning("no HNSW index, searches compare all vectors: %s", error, extra={"collection": number})
        finally:
            with self._lock:
                self._connection = self._thread = None


def _build(connection: Connection, number: int) -> bool:
    """Whether this was the one to build it."""
    (ours,) = connection.execute("SELECT pg_try_advisory_lock(%s, %s::int4)", (_LOCK, number)).fetchone() or (False,)
    if not ours:
        return False
    schema = collection_schema(number)
    # One whose building was cut short is there, and is not used.
    drop = sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}.{}").format(schema, sql.Identifier(HNSW_INDEX))
    (valid,) = connection.execute(
        "SELECT coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)), false)",
        (f"resrank_{number}.{HNSW_INDEX}",),
    ).fetchone() or (False,)
    if valid:
        return False
    connection.execute(drop)
    connection.execute(
        sql.SQL("CREATE INDEX CONCURRENTLY {} ON {}.vectors USING hnsw (vector halfvec_cosine_ops)").format(
            sql.Identifier(HNSW_INDEX), schema
        )
    )
    return True
