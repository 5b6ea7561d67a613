"""The gRPC service: admits, validates, hands the work to threads, answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

import faiss
import grpc

import resrank.core
from resrank.core.errors import QueueFullError
from resrank.core.sidecar.searching import encoder_mismatch
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc
from resrank.core.tracing import inner_span, record_span
from resrank.retrieval import wire
from resrank.retrieval.errors import EncoderMismatchError
from resrank.retrieval.metrics import THREADS, SidecarMetrics
from resrank.retrieval.records import UpsertCounts
from resrank.retrieval.store import VectorStore

logger = logging.getLogger(__name__)

STORED_BATCHES = "resrank-stored-batches"
"""Trailing metadata of Upsert: how many batches of the stream are stored, whatever the status."""

_Context = grpc.aio.ServicerContext[Any, Any]
_Result = TypeVar("_Result")


class RetrievalService(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Speaks ``resrank.retrieval.v1`` for any :class:`VectorStore`.

    The event loop only moves messages. Reads run on a pool of threads, one core each; writes run one after the other on
    a thread of their own, so that a long upsert does not take the searches' threads.
    """

    def __init__(self, store: VectorStore, metrics: SidecarMetrics, *, search_threads: int, max_inflight: int) -> None:
        """Makes the service.

        Args:
            store: What it serves.
            metrics: Told of waiting and of passages.
            search_threads: How many reads run at once.
            max_inflight: How many units of work (reads, or batches of a stream) may be admitted at once.
        """
        self._store = store
        self._metrics = metrics
        self._reads = ThreadPoolExecutor(search_threads, "search", initializer=faiss.omp_set_num_threads, initargs=(1,))
        self._writes = ThreadPoolExecutor(1, "write", initializer=faiss.omp_set_num_threads, initargs=(1,))
        self._max_inflight = max_inflight
        self._inflight = 0
        metrics.watch("resrank_retrieval_work_in_flight", "Work that waits or runs", lambda: self._inflight)
        metrics.watch("resrank_retrieval_work_limit", "Work that may be admitted at once", lambda: max_inflight)
        metrics.watch("resrank_retrieval_index_records", "Passages in the index", lambda: store.describe().record_count)

    async def Search(self, request: pb.SearchRequest, context: _Context) -> pb.SearchResponse:  # noqa: N802
        """See the proto."""
        admitted = time.perf_counter()

        def work() -> pb.SearchResponse:
            started = time.perf_counter()
            response = wire.search_response(self._store.search(wire.parse_search(request)))
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
        try:
            async for request in request_iterator:
                counts = await self._run(self._writes, partial(self._store_batch, request))
                response.inserted += counts.inserted
                response.updated += counts.updated
                self._metrics.records("inserted", counts.inserted)
                self._metrics.records("updated", counts.updated)
                response.batches += 1
                self._writes.submit(self._store.maintain)
        finally:
            context.set_trailing_metadata(((STORED_BATCHES, str(response.batches)),))
        return response

    async def Delete(self, request: pb.DeleteRequest, context: _Context) -> pb.DeleteResponse:  # noqa: N802
        """See the proto."""
        missing = await self._run(self._writes, lambda: self._store.delete(wire.parse_ids(request.ids)))
        self._writes.submit(self._store.maintain)
        self._metrics.records("deleted", len(request.ids) - len(missing))
        return pb.DeleteResponse(deleted=len(request.ids) - len(missing), missing_ids=missing)

    async def Get(self, request: pb.GetRequest, context: _Context) -> pb.GetResponse:  # noqa: N802
        """See the proto."""

        def work() -> pb.GetResponse:
            ids = wire.parse_ids(request.ids)
            self._require_encoder(wire.parse_get_encoder(request))
            found = self._store.get(
                ids, include_texts=request.include_texts, include_embeddings=request.include_embeddings
            )
            text = wire.parse_get_text(request)
            return wire.get_response(ids, found, self._store.word_scores(text, ids) if text else None)

        response = await self._run(self._reads, work)
        self._metrics.records("read", len(response.records))
        return response

    async def List(self, request: pb.ListRequest, context: _Context) -> pb.ListResponse:  # noqa: N802
        """See the proto."""
        limit = wire.parse_limit(request.limit)
        return pb.ListResponse(ids=await self._run(self._reads, lambda: self._store.list_ids(request.after, limit)))

    async def Describe(self, request: pb.DescribeRequest, context: _Context) -> pb.DescribeResponse:  # noqa: N802
        """See the proto."""
        description = await self._run(self._reads, self._store.describe)
        encoder = description.encoder
        return pb.DescribeResponse(
            record_count=description.record_count,
            dimension=0 if encoder is None else encoder.dimension,
            encoder_sha256="" if encoder is None else encoder.sha256,
            dense_index=description.dense_index,
            lexical_index=description.lexical_index,
            path=description.path,
            version=resrank.core.__version__,
        )

    def close(self) -> None:
        """Waits for admitted work; the store stays open."""
        self._reads.shutdown()
        self._writes.shutdown()

    def _require_encoder(self, wanted: str | None) -> None:
        encoder = None if wanted is None else self._store.describe().encoder
        if wanted is not None and encoder is not None and wanted != encoder.sha256:
            raise EncoderMismatchError(encoder_mismatch(encoder.sha256, wanted))

    def _store_batch(self, request: pb.UpsertRequest) -> UpsertCounts:
        return self._store.upsert(wire.parse_batch(request))

    async def _run(self, threads: ThreadPoolExecutor, work: Callable[[], _Result]) -> _Result:
        submitted_ns = time.time_ns()

        def in_thread() -> _Result:
            started_ns = time.time_ns()
            record_span("queue", submitted_ns, started_ns)
            self._metrics.waited(THREADS[threads is self._writes], max(0, started_ns - submitted_ns) / 1e9)
            with inner_span("compute"):
                return work()

        with self._admitted():
            # The caller's span goes along into the thread.
            return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, in_thread)

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
