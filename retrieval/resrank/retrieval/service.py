"""The gRPC service: admits, validates, hands the work to threads, answers."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

import faiss
import grpc

import resrank.core
from resrank.core.collection_names import check_collection_name
from resrank.core.errors import CollectionNotFoundError, EncoderMismatchError, InvalidInputError, QueueFullError
from resrank.core.sidecar.searching import encoder_mismatch
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc
from resrank.core.tracing import inner_span, record_span
from resrank.retrieval import catalog_wire, wire
from resrank.retrieval.backup_reader import BackupReader
from resrank.retrieval.catalog import Catalog, HeldCollection
from resrank.retrieval.errors import StoreUnavailableError
from resrank.retrieval.metrics import THREADS, SidecarMetrics
from resrank.retrieval.records import IndexDescription, UpsertCounts
from resrank.retrieval.store import VectorStore

logger = logging.getLogger(__name__)

STORED_BATCHES = "resrank-stored-batches"
"""Trailing metadata of Upsert: how many batches of the stream are stored, whatever the status."""

MOST_BACKUPS = 2
"""At once."""

_Context = grpc.aio.ServicerContext[Any, Any]
_Result = TypeVar("_Result")


class RetrievalService(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Speaks ``resrank.retrieval.v1`` for any :class:`~resrank.retrieval.catalog.Catalog`.

    A request finds its collection once and holds it to its end, whatever happens to names meanwhile. The event loop
    only moves messages. Reads run on a pool of threads, one core each; writes, of all collections, run one after the
    other on a thread of their own, so that a long upsert does not take the searches' threads.
    """

    def __init__(self, catalog: Catalog, metrics: SidecarMetrics, *, search_threads: int, max_inflight: int) -> None:
        """Makes the service.

        Args:
            catalog: What it serves.
            metrics: Told of waiting and of passages.
            search_threads: How many reads run at once.
            max_inflight: How many units of work (reads, or batches of a stream) may be admitted at once.
        """
        self._catalog = catalog
        self._metrics = metrics
        self._reads = ThreadPoolExecutor(search_threads, "search", initializer=faiss.omp_set_num_threads, initargs=(1,))
        self._writes = ThreadPoolExecutor(1, "write", initializer=faiss.omp_set_num_threads, initargs=(1,))
        # Apart, so that an alias moves at once however much is stored.
        self._names = ThreadPoolExecutor(1, "names")
        self._max_inflight = max_inflight
        self._backups = 0
        self._inflight = 0
        metrics.watch("resrank_retrieval_work_in_flight", "Work that waits or runs", lambda: self._inflight)
        metrics.watch("resrank_retrieval_work_limit", "Work that may be admitted at once", lambda: max_inflight)
        # Of all collections together: a label with their names would let callers grow the page without bound.
        metrics.watch(
            "resrank_retrieval_index_records",
            "Passages in all collections",
            lambda: _figure(lambda: sum(info.usage.record_count for info in catalog.collections())),
        )
        metrics.watch(
            "resrank_retrieval_collections", "Collections", lambda: _figure(lambda: len(catalog.collections()))
        )

    async def Search(self, request: pb.SearchRequest, context: _Context) -> pb.SearchResponse:  # noqa: N802
        """See the proto."""
        admitted = time.perf_counter()

        def work() -> pb.SearchResponse:
            started = time.perf_counter()
            with self._held(request.collection) as held:
                response = wire.search_response(held.store.search(wire.parse_search(request)))
            response.collection = held.name
            response.timings.queue_ms = 1e3 * (started - admitted)
            response.timings.total_ms = 1e3 * (time.perf_counter() - admitted)
            return response

        response = await self._run(self._reads, work)
        self._metrics.records("found", len(response.ids))
        return response

    async def Upsert(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UpsertRequest], context: _Context
    ) -> pb.UpsertResponse:
        """See the proto."""
        response = pb.UpsertResponse()
        asked: str | None = None
        collection = ""
        try:
            async for request in request_iterator:
                if asked not in (None, request.collection):
                    raise InvalidInputError(
                        "collection", f"{request.collection!r} after {asked!r}: a stream fills one collection"
                    )
                if asked is None:
                    asked = collection = request.collection
                collection, counts = await self._run(self._writes, partial(self._store_batch, collection, request))
                response.inserted += counts.inserted
                response.updated += counts.updated
                self._metrics.records("inserted", counts.inserted)
                self._metrics.records("updated", counts.updated)
                response.batches += 1
                self._writes.submit(self._maintain, collection)
        finally:
            context.set_trailing_metadata(((STORED_BATCHES, str(response.batches)),))
        return response

    async def Delete(self, request: pb.DeleteRequest, context: _Context) -> pb.DeleteResponse:  # noqa: N802
        """See the proto."""

        def work() -> tuple[str, list[str]]:
            with self._held(request.collection) as held:
                return held.name, held.store.delete(wire.parse_ids(request.ids))

        collection, missing = await self._run(self._writes, work)
        self._writes.submit(self._maintain, collection)
        self._metrics.records("deleted", len(request.ids) - len(missing))
        return pb.DeleteResponse(deleted=len(request.ids) - len(missing), missing_ids=missing)

    async def Get(self, request: pb.GetRequest, context: _Context) -> pb.GetResponse:  # noqa: N802
        """See the proto."""

        def work() -> pb.GetResponse:
            ids = wire.parse_ids(request.ids)
            with self._held(request.collection) as held:
                store = held.store
                _require_encoder(store, wire.parse_get_encoder(request))
                found = store.get(
                    ids, include_texts=request.include_texts, include_embeddings=request.include_embeddings
                )
                text = wire.parse_get_text(request)
                return wire.get_response(ids, found, store.word_scores(text, ids) if text else None)

        response = await self._run(self._reads, work)
        self._metrics.records("read", len(response.records))
        return response

    async def List(self, request: pb.ListRequest, context: _Context) -> pb.ListResponse:  # noqa: N802
        """See the proto."""
        limit = wire.parse_limit(request.limit)

        def work() -> list[str]:
            with self._held(request.collection) as held:
                return held.store.list_ids(request.after, limit)

        return pb.ListResponse(ids=await self._run(self._reads, work))

    async def Describe(self, request: pb.DescribeRequest, context: _Context) -> pb.DescribeResponse:  # noqa: N802
        """See the proto."""

        def work() -> tuple[str, IndexDescription]:
            with self._held(request.collection) as held:
                return held.name, held.store.describe()

        collection, description = await self._run(self._reads, work)
        encoder = description.encoder
        return pb.DescribeResponse(
            record_count=description.record_count,
            dimension=0 if encoder is None else encoder.dimension,
            encoder_sha256="" if encoder is None else encoder.sha256,
            dense_index=description.dense_index,
            lexical_index=description.lexical_index,
            path=description.path,
            version=resrank.core.__version__,
            collection=collection,
            fields=wire.field_messages(description),
        )

    async def CreateCollection(  # noqa: N802
        self, request: pb.CreateCollectionRequest, context: _Context
    ) -> pb.CreateCollectionResponse:
        """See the proto."""
        await self._run(self._names, lambda: self._catalog.create(*catalog_wire.parse_new_collection(request)))
        return pb.CreateCollectionResponse()

    async def ListCollections(  # noqa: N802
        self, request: pb.ListCollectionsRequest, context: _Context
    ) -> pb.ListCollectionsResponse:
        """See the proto."""
        found = await self._run(self._reads, self._catalog.collections)
        return pb.ListCollectionsResponse(collections=map(catalog_wire.collection_message, found))

    async def DropCollection(  # noqa: N802
        self, request: pb.DropCollectionRequest, context: _Context
    ) -> pb.DropCollectionResponse:
        """See the proto."""
        name = check_collection_name("collection", request.collection)
        await self._run(self._names, lambda: self._catalog.drop(name))
        return pb.DropCollectionResponse()

    async def SetAlias(self, request: pb.SetAliasRequest, context: _Context) -> pb.SetAliasResponse:  # noqa: N802
        """See the proto."""
        previous = await self._run(self._names, lambda: self._catalog.set_alias(*catalog_wire.parse_alias(request)))
        return pb.SetAliasResponse(previous=None if previous is None else catalog_wire.alias_message(previous))

    async def ListAliases(  # noqa: N802
        self, request: pb.ListAliasesRequest, context: _Context
    ) -> pb.ListAliasesResponse:
        """See the proto."""
        wanted = check_collection_name("name", request.name) if request.name else None
        found = await self._run(self._reads, self._catalog.aliases)
        return pb.ListAliasesResponse(
            aliases=[catalog_wire.alias_message(alias) for alias in found if wanted in (None, alias.name)]
        )

    async def DeleteAlias(  # noqa: N802
        self, request: pb.DeleteAliasRequest, context: _Context
    ) -> pb.DeleteAliasResponse:
        """See the proto."""
        name = check_collection_name("name", request.name)
        await self._run(self._names, lambda: self._catalog.delete_alias(name))
        return pb.DeleteAliasResponse()

    async def Backup(  # noqa: N802
        self, request: pb.BackupRequest, context: _Context
    ) -> AsyncIterator[pb.BackupPart]:
        """See the proto."""
        name = catalog_wire.parse_collection(request.collection)
        run = asyncio.get_running_loop().run_in_executor
        with self._admitted(), self._one_of_the_backups():
            reader = await run(self._reads, BackupReader, self._catalog, name)
            try:
                while (part := await run(self._reads, reader.next)) is not None:
                    yield part
                    self._metrics.records("read", len(part.records))
            finally:
                try:
                    # Behind a read that may still be under way where the caller has gone.
                    self._reads.submit(reader.close)
                except RuntimeError:  # the service was closed beneath it, and has waited for its reads
                    reader.close()

    def close(self) -> None:
        """Waits for admitted work; the store stays open."""
        for threads in (self._reads, self._writes, self._names):
            threads.shutdown()

    def _held(self, asked: str) -> AbstractContextManager[HeldCollection]:
        return self._catalog.collection(catalog_wire.parse_collection(asked))

    def _store_batch(self, collection: str, request: pb.UpsertRequest) -> tuple[str, UpsertCounts]:
        with self._held(collection) as held:
            return held.name, held.store.upsert(wire.parse_batch(request))

    def _maintain(self, collection: str) -> None:
        # Dropped meanwhile, it needs no care.
        with suppress(CollectionNotFoundError), self._catalog.collection(collection) as held:
            held.store.maintain()

    async def _run(self, threads: ThreadPoolExecutor, work: Callable[[], _Result]) -> _Result:
        submitted_ns = time.time_ns()

        def in_thread() -> _Result:
            started_ns = time.time_ns()
            record_span("queue", submitted_ns, started_ns)
            self._metrics.waited(THREADS[threads is not self._reads], max(0, started_ns - submitted_ns) / 1e9)
            with inner_span("compute"):
                return work()

        with self._admitted():
            # The caller's span goes along into the thread.
            return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, in_thread)

    @contextmanager
    def _one_of_the_backups(self) -> Iterator[None]:
        """Each keeps a moment of its store as it was, and a connection, for as long as its caller reads."""
        if self._backups >= MOST_BACKUPS:
            raise QueueFullError(f"{MOST_BACKUPS} backups are under way: call again when one has ended")
        self._backups += 1
        try:
            yield
        finally:
            self._backups -= 1

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        # No lock: only the event loop's thread comes here.
        if self._inflight >= self._max_inflight:
            raise QueueFullError(
                f"the sidecar has {self._max_inflight} requests in flight (RESRANK_RETRIEVAL_MAX_INFLIGHT): slow down"
            )
        self._inflight += 1
        try:
            yield
        finally:
            self._inflight -= 1


def _require_encoder(store: VectorStore, wanted: str | None) -> None:
    encoder = None if wanted is None else store.describe().encoder
    if wanted is not None and encoder is not None and wanted != encoder.sha256:
        raise EncoderMismatchError(encoder_mismatch(encoder.sha256, wanted))


def _figure(read: Callable[[], float]) -> float:
    """A figure of the store's; none where its server does not answer: the page still shows the others."""
    try:
        return read()
    except StoreUnavailableError:
        return math.nan
