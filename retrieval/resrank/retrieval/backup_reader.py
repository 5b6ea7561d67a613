"""A backup under way: the parts of one collection's copy, read by one thread after the other."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import ExitStack, closing

from resrank.core.sidecar.backups import RecordsDigest
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.retrieval.catalog import Catalog
from resrank.retrieval.catalog_wire import first_part, records_parts
from resrank.retrieval.store import VectorStore


class BackupReader:
    """Holds a collection and gives out its records as they were when the first of them were read.

    Args:
        catalog: Where it is.
        name: Its name, or an alias's.

    Raises:
        CollectionNotFoundError: There is none of that name.
    """

    def __init__(self, catalog: Catalog, name: str) -> None:
        self._held = ExitStack()
        self._lock = threading.Lock()
        self._parts = _parts(self._held.enter_context(catalog.collection(name)).store)

    def next(self) -> pb.BackupPart | None:
        """The next part; None at the end.

        Raises:
            RetrievalError: A record is not what was stored.
        """
        with self._lock:
            return next(self._parts, None)

    def close(self) -> None:
        """Lets go of the collection, once a read that is under way has ended."""
        with self._lock:
            self._parts.close()
            self._held.close()


def _parts(store: VectorStore) -> Generator[pb.BackupPart, None, None]:
    digest = RecordsDigest()
    with closing(store.export()) as batches:
        batch = next(batches, None)
        yield first_part(store.describe().encoder if batch is None else batch.encoder)
        while batch is not None:
            for part in records_parts(batch):
                digest.add(part.records)
                yield part
            batch = next(batches, None)
    yield pb.BackupPart(sha256=digest.value())
