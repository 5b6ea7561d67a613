"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from grpc import aio
from numpy.typing import NDArray
from tenacity import AsyncRetrying

from resrank.client import plans, searches, stored
from resrank.client.base import CLOSED, CallState, ClientBase
from resrank.client.calls import Call
from resrank.client.channels import open_aio_channel
from resrank.client.results import HealthReport, RerankResult, SearchResult
from resrank.client.retries import retry_policy
from resrank.client.settings import TlsConfig
from resrank.client.traces import request_span
from resrank.client.transport_errors import to_resrank_error
from resrank.client.triton_calls import Float32
from resrank.core.calibration import Calibration
from resrank.core.errors import ResRankError, ServerUnavailableError
from resrank.core.filters import Filter
from resrank.core.fusion import Fusion
from resrank.core.names import Model, Priority
from resrank.core.search import DEFAULT_CANDIDATES, DEFAULT_K, SearchMode
from resrank.core.truncation import Truncation

T = TypeVar("T")


class AsyncResRankClient(ClientBase[aio.Channel]):
    """Embeds, reranks and searches over gRPC, for asyncio.

    The methods, arguments, results and errors are those of :class:`~resrank.client.client.ResRankClient`, as
    coroutines. One client serves any number of tasks of one event loop. A cancelled task cancels its requests.

    Example:
        >>> async with AsyncResRankClient("localhost:8001") as client:
        ...     result = await client.rerank("who wrote the first algorithm?", passages=texts)
    """

    _loop: asyncio.AbstractEventLoop | None = None
    """The one of the first call, which gRPC's channels belong to."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channels; calls under way in other tasks fail. Closing twice does nothing."""
        for channel in self._disconnect():
            await channel.close()

    async def search(
        self,
        query: str,
        k: int = DEFAULT_K,
        *,
        candidates: int = DEFAULT_CANDIDATES,
        mode: str = SearchMode.HYBRID,
        fusion: str = Fusion.WEIGHTED,
        lexical_weight: float | None = None,
        rerank: bool = True,
        collection: str = "",
        filter: Filter | str | None = None,
        include_metadata: bool = False,
        truncate: bool | Truncation = False,
        route: searches.Route = "client",
        on_failure: str | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> SearchResult:
        """As :meth:`ResRankClient.search`."""
        options = searches.search_options(
            k,
            candidates,
            mode,
            fusion,
            rerank,
            lexical_weight,
            self._on_failure(on_failure),
            collection,
            filter,
            include_metadata,
        )
        plan = searches.search(
            self._facts_of,
            query,
            options,
            truncate=truncate,
            route=route,
            has_sidecar=self._settings.retrieval is not None,
        )
        return await self._run("search", plan, timeout_s, traceparent)

    async def rerank(
        self,
        query: str,
        candidates: NDArray[Any] | None = None,
        *,
        passages: Sequence[str] | None = None,
        lexical_scores: Sequence[float] | NDArray[Any] | None = None,
        lexical_weight: float | None = None,
        truncate: bool | Truncation = False,
        second_pass: bool = False,
        on_failure: str | None = None,
        priority: Priority | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> RerankResult:
        """As :meth:`ResRankClient.rerank`."""
        plan = plans.rerank(
            self._facts_of(),
            query,
            candidates,
            passages,
            lexical_scores=lexical_scores,
            lexical_weight=lexical_weight,
            truncate=truncate,
            second_pass=second_pass,
            on_failure=self._on_failure(on_failure),
        )
        return await self._run("rerank", plans.prioritized(priority, plan), timeout_s, traceparent)

    async def rerank_stored(
        self,
        query: str,
        ids: Sequence[str],
        *,
        collection: str = "",
        lexical_weight: float | None = None,
        include_texts: bool = False,
        truncate: bool | Truncation = False,
        on_failure: str | None = None,
        priority: Priority | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> RerankResult:
        """As :meth:`ResRankClient.rerank_stored`."""
        plan = stored.rerank_stored(
            self._facts_of,
            query,
            ids,
            collection=collection,
            lexical_weight=lexical_weight,
            include_texts=include_texts,
            truncate=truncate,
            on_failure=self._on_failure(on_failure),
        )
        return await self._run("rerank_stored", plans.prioritized(priority, plan), timeout_s, traceparent)

    async def embed_queries(
        self,
        texts: Sequence[str],
        *,
        truncate: bool | Truncation = False,
        tokens_read: list[int] | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> Float32:
        """As :meth:`ResRankClient.embed_queries`."""
        return await self._run(
            "embed_queries",
            plans.embed(self._facts_of(), Model.EMBED_QUERY, texts, truncate=truncate, read=tokens_read),
            timeout_s,
            traceparent,
        )

    async def embed_passages(
        self,
        texts: Sequence[str],
        *,
        truncate: bool | Truncation = False,
        bulk: bool = False,
        tokens_read: list[int] | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> Float32:
        """As :meth:`ResRankClient.embed_passages`."""
        model = Model.EMBED_BULK if bulk else Model.EMBED_PASSAGE
        plan = plans.embed(self._facts_of(), model, texts, truncate=truncate, read=tokens_read)
        return await self._run("embed_passages", plan, timeout_s, traceparent)

    async def encoder_sha256(
        self, *, triton: str = "", timeout_s: float | None = None, traceparent: str | None = None
    ) -> str:
        """As :meth:`ResRankClient.encoder_sha256`."""
        plan = plans.sent_to(triton, plans.encoder_sha256(self._facts_of(triton)))
        return await self._run("encoder_sha256", plan, timeout_s, traceparent)

    async def lexical_weight(
        self, *, triton: str = "", timeout_s: float | None = None, traceparent: str | None = None
    ) -> float:
        """As :meth:`ResRankClient.lexical_weight`."""
        plan = plans.sent_to(triton, plans.lexical_weight(self._facts_of(triton)))
        return await self._run("lexical_weight", plan, timeout_s, traceparent)

    async def calibration(
        self, *, triton: str = "", timeout_s: float | None = None, traceparent: str | None = None
    ) -> Calibration | None:
        """As :meth:`ResRankClient.calibration`."""
        plan = plans.sent_to(triton, plans.calibration(self._facts_of(triton)))
        return await self._run("calibration", plan, timeout_s, traceparent)

    async def health(self, *, timeout_s: float | None = None, traceparent: str | None = None) -> HealthReport:
        """As :meth:`ResRankClient.health`."""
        plan = plans.health(self._facts_of(), with_retrieval=self._settings.retrieval is not None)
        return await self._run("health", plan, timeout_s, traceparent, retry=False)

    async def _run(
        self,
        operation: str,
        plan: plans.Plan[T],
        timeout_s: float | None,
        traceparent: str | None,
        *,
        retry: bool = True,
    ) -> T:
        """Drives a plan to its end; ``ResRankClient._run`` is its twin."""
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise ResRankError("the client belongs to another event loop: make one for each")
        self._loop = loop
        attempts = self._settings.max_attempts if retry else 1
        with self._call(operation, timeout_s, traceparent) as state:
            try:
                calls = next(plan)
                while True:
                    try:
                        results = await self._perform(calls, state, attempts)
                    except ResRankError as error:
                        calls = plan.throw(error)
                    else:
                        calls = plan.send(results)
            except StopIteration as end:
                result: T = end.value
                return result

    async def _perform(self, calls: Sequence[Call[Any]], state: CallState, attempts: int) -> list[Any]:
        results: list[Any] = [None] * len(calls)
        waiting = deque(enumerate(calls))

        async def work() -> None:
            while waiting:
                index, call = waiting.popleft()
                until = state.leaving(call.reserve)
                try:
                    results[index] = await AsyncRetrying(**retry_policy(attempts, until.deadline))(
                        self._send, call, until
                    )
                except BaseException:
                    waiting.clear()
                    raise

        # After an error nothing more is sent and what is under way is waited for, as in ResRankClient._perform.
        workers = (work() for _ in range(min(len(calls), self._settings.max_in_flight)))
        for outcome in await asyncio.gather(*workers, return_exceptions=True):
            if outcome is not None:
                raise outcome
        return results

    async def _send(self, call: Call[T], state: CallState) -> T:
        address, _ = self._endpoint(call)
        with request_span(call, address, state.context) as trace:
            method = self._method(call)
            request = call.build(state.deadline.require(call.subject))
            timeout = state.deadline.require(call.subject)
            try:
                response = await method(request, timeout=timeout, metadata=(*state.metadata, *trace))
            except aio.AioRpcError as error:
                typed = to_resrank_error(call, error.code(), error.details(), state.deadline)
                if isinstance(typed, ServerUnavailableError):
                    self._facts_of(call.address).clear()
                raise typed from error
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._closed and task is not None and not task.cancelling():
                    raise ResRankError(CLOSED) from None  # close() cancelled the request; nobody cancelled this task
                raise
            except aio.UsageError as error:  # grpc's word for a channel that was closed meanwhile
                raise ResRankError(CLOSED) from error
            return call.parse(response)

    def _open(self, address: str, tls: TlsConfig | None) -> aio.Channel:
        return open_aio_channel(address, tls)
