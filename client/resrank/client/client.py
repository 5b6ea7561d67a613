"""The client for threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from numpy.typing import NDArray
from tenacity import Retrying

from resrank.client import plans, searches, stored
from resrank.client.base import CLOSED, CallState, ClientBase
from resrank.client.calls import Call
from resrank.client.channels import open_channel
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


class ResRankClient(ClientBase[grpc.Channel]):
    """Embeds, reranks and searches over gRPC, for threads.

    One client, with one channel to each server, serves any number of threads; close it when done, or use it as a
    context manager. :class:`~resrank.client.base.ClientBase` documents the constructor's arguments.

    Every method takes ``timeout_s``, the call's whole budget in seconds (None: the client's own), and ``traceparent``,
    the W3C trace context to send along. Every method raises, besides what it names itself:

    * :class:`~resrank.core.errors.ServerUnavailableError`: no server answers, after the retries;
    * :class:`~resrank.core.errors.QueueFullError`: the server sheds load;
    * :class:`~resrank.core.errors.DeadlineExceededError`: the time is up;
    * :class:`~resrank.core.errors.ModelNotReadyError`: Triton does not have the model, or not yet;
    * :class:`~resrank.core.errors.ResRankError`: the client is closed, access was refused, or the server failed.

    Example:
        >>> with ResRankClient("localhost:8001", retrieval="localhost:8003") as client:
        ...     result = client.search("who wrote the first algorithm?", k=10)
        ...     print(result.passages[0].title)
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channels; calls under way in other threads fail. Closing twice does nothing."""
        for channel in self._disconnect():
            channel.close()

    def search(
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
        """Finds the best passages of the index for a query.

        Args:
            query: The query, at most ``MAX_QUERY_BYTES`` of UTF-8.
            k: Passages to return, 1 to ``candidates``.
            candidates: Passages to retrieve and rerank, at most ``MAX_MESSAGE_RECORDS``.
            mode: How candidates are found: ``dense`` (embeddings), ``lexical`` (words) or ``hybrid`` (both, fused).
            fusion: How ``hybrid`` joins both: ``weighted``, by mapped cosine + w * BM25 / best BM25 of the index, or
                ``rrf``, by reciprocal rank fusion.
            lexical_weight: w, 0 to 10; None for the checkpoint's. A reranked order is by the reranker's score + w *
                BM25 / best BM25, however the words found the candidates; 0 leaves it to the reranker alone.
            rerank: Whether the reranker orders them; without it they come in retrieval order, and ``lexical`` needs no
                Triton.
            collection: Whose passages, by name or by an alias, which may name another Triton than the client's: all
                steps are then that one's. Empty for the default collection.
            filter: What a passage's metadata must meet to be found, ``F("year") >= 2020`` or as text, ``year >= 2020``
                (:mod:`resrank.core.filter_text`); None for nothing. The best that meet it are found, as many as
                there are.
            include_metadata: Whether each passage comes with its metadata.
            truncate: Cut a query over the token maximum instead of refusing it.
            route: Who does the steps: this client, one request for each, or with ``server`` Triton's ``search`` model
                in one request, so that the candidates' vectors stay on the server's machine. The result is the same.
            on_failure: What to do where the models are down, full or late; None for the client's setting. ``error``
                raises. With ``retrieval_order`` the candidates come back as they were found, within ``timeout_s``, and
                the result's ``failure`` says why: where the reranker fails, and, found by words alone, where a
                ``hybrid`` search cannot have the query encoded. ``dense`` then raises, as ``server`` does without a
                sidecar's address where no Triton answers.
            timeout_s: Budget of all steps together, in seconds.
            traceparent: W3C trace context.

        Raises:
            InvalidInputError: The query or a size breaks a rule, the collection has no such field as the filter names
                or another type of it, or the client has no sidecar's address, which ``route="server"`` does not need.
            CollectionNotFoundError: There is no collection and no alias of the name.
            EncoderMismatchError: The collection belongs to another encoder than Triton's.
            RetrievalError: The sidecar failed, or Triton was told of no sidecar.
        """
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
        return self._run("search", plan, timeout_s, traceparent)

    def rerank(
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
        """Orders candidates by how well they answer a query.

        More candidates than the model takes in one pass go in blocks of that many, sent at the same time, and their
        cosines are merged.

        Args:
            query: The query, at most ``MAX_QUERY_BYTES`` of UTF-8.
            candidates: FP16 or FP32 [N, d] embeddings by the server's encoder, in retrieval order.
            passages: Instead of ``candidates``, N texts in retrieval order, which the server embeds first.
            lexical_scores: N BM25 scores, from 0 on, where the candidates come with some: the order is then by the
                reranker's score + w * BM25 / best BM25 of the list.
            lexical_weight: w, 0 to 10; None for the checkpoint's.
            truncate: Cut texts over the token maximum instead of refusing them.
            second_pass: Where several blocks were needed, score the best of them once more in one pass and return only
                these, so that all scores come from the same context.
            on_failure: What to do where the models are down, full or late; None for the client's setting. ``error``
                raises. With ``retrieval_order`` all candidates come back in the order given, within ``timeout_s``, with
                scores of 0, and the result's ``failure`` says why.
            priority: Triton's level of the requests; with ``BULK`` others go first where queues have levels (the
                encoder's in GPU repositories). The requests by which ``rerank_text`` has passages and their query
                encoded have no level.
            timeout_s: Budget in seconds.
            traceparent: W3C trace context.

        Raises:
            InvalidInputError: The query, a candidate or a passage breaks a rule; the error names the first one.
        """
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
        return self._run("rerank", plans.prioritized(priority, plan), timeout_s, traceparent)

    def rerank_stored(
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
        """Orders passages of the index by how well they answer a query, by their stored vectors: no text is encoded.

        The order is that of a search: by the reranker's score + w * BM25 / best BM25 of the index.

        Args:
            query: The query, at most ``MAX_QUERY_BYTES`` of UTF-8.
            ids: Of passages in the index, distinct, in retrieval order. Those that are not there are named in the
                result's ``missing_ids`` and are no error.
            collection: As for :meth:`search`.
            lexical_weight: w, 0 to 10; None for the checkpoint's. With 0 no words are looked up.
            include_texts: Whether titles and texts are wanted, too.
            truncate: Cut a query over the token maximum instead of refusing it.
            on_failure: As for :meth:`rerank`; the passages then come in the order of their ids. That is so where the
                sidecar is down, full or late as well: the passages are then without titles and texts, and ids that the
                index does not have stand among them.
            priority: Triton's level of the requests; with ``BULK`` others go first where queues have levels (the
                encoder's in GPU repositories).
            timeout_s: Budget of all steps together, in seconds.
            traceparent: W3C trace context.

        Raises:
            InvalidInputError: The query or an id breaks a rule, or the client has no sidecar's address.
            CollectionNotFoundError: There is no collection and no alias of the name.
            EncoderMismatchError: The collection belongs to another encoder than Triton's.
            RetrievalError: The sidecar failed.
        """
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
        return self._run("rerank_stored", plans.prioritized(priority, plan), timeout_s, traceparent)

    def embed_queries(
        self,
        texts: Sequence[str],
        *,
        truncate: bool | Truncation = False,
        tokens_read: list[int] | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> Float32:
        """Embeds queries, for searching.

        Args:
            texts: At least one, each at most ``MAX_QUERY_BYTES`` of UTF-8; long lists go in several requests.
            truncate: Cut texts over the token maximum instead of refusing them.
            tokens_read: Told how many tokens were read, a number for each request to the model.
            timeout_s: Budget in seconds for the whole list.
            traceparent: W3C trace context.

        Returns:
            FP32 [len(texts), d].

        Raises:
            InvalidInputError: A text breaks a rule; the error names it as ``QUERY[index]``.
        """
        return self._run(
            "embed_queries",
            plans.embed(self._facts_of(), Model.EMBED_QUERY, texts, truncate=truncate, read=tokens_read),
            timeout_s,
            traceparent,
        )

    def embed_passages(
        self,
        texts: Sequence[str],
        *,
        truncate: bool | Truncation = False,
        bulk: bool = False,
        tokens_read: list[int] | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> Float32:
        """Embeds passages, for an index or as candidates.

        Args:
            texts: At least one, each at most ``MAX_PASSAGE_BYTES`` of UTF-8; long lists go in several requests.
            truncate: Cut texts over the token maximum instead of refusing them.
            bulk: Nobody waits for the answer: whatever else the server has to do goes first. An index is filled so.
            tokens_read: Told how many tokens were read, a number for each request to the model.
            timeout_s: Budget in seconds for the whole list.
            traceparent: W3C trace context.

        Returns:
            FP32 [len(texts), d].

        Raises:
            InvalidInputError: A text breaks a rule; the error names it as ``TEXT[index]``.
        """
        model = Model.EMBED_BULK if bulk else Model.EMBED_PASSAGE
        plan = plans.embed(self._facts_of(), model, texts, truncate=truncate, read=tokens_read)
        return self._run("embed_passages", plan, timeout_s, traceparent)

    def encoder_sha256(
        self, *, triton: str = "", timeout_s: float | None = None, traceparent: str | None = None
    ) -> str:
        """The hash that names the encoder behind Triton's models; an index must have been built with the same.

        Args:
            triton: Another Triton than the client's own: the one that a result behind an alias names.
            timeout_s: Budget in seconds.
            traceparent: W3C trace context.
        """
        plan = plans.sent_to(triton, plans.encoder_sha256(self._facts_of(triton)))
        return self._run("encoder_sha256", plan, timeout_s, traceparent)

    def lexical_weight(
        self, *, triton: str = "", timeout_s: float | None = None, traceparent: str | None = None
    ) -> float:
        """The w of Triton's checkpoint, which a search or a reranking of stored passages has that names none.

        Args:
            triton: As for :meth:`encoder_sha256`.
            timeout_s: Budget in seconds.
            traceparent: W3C trace context.
        """
        plan = plans.sent_to(triton, plans.lexical_weight(self._facts_of(triton)))
        return self._run("lexical_weight", plan, timeout_s, traceparent)

    def calibration(
        self, *, triton: str = "", timeout_s: float | None = None, traceparent: str | None = None
    ) -> Calibration | None:
        """What the scores of Triton's checkpoint mean, as relevance from 0 to 1; None where nobody fitted that.

        ``calibration.for_weight(lexical_weight).of(scores)`` maps scores with the words' share of that weight.

        Args:
            triton: As for :meth:`encoder_sha256`.
            timeout_s: Budget in seconds.
            traceparent: W3C trace context.
        """
        plan = plans.sent_to(triton, plans.calibration(self._facts_of(triton)))
        return self._run("calibration", plan, timeout_s, traceparent)

    def health(self, *, timeout_s: float | None = None, traceparent: str | None = None) -> HealthReport:
        """Asks all servers and models whether they are ready.

        A server that is down or a model that is missing is part of the report and not an error; nothing is retried.
        """
        plan = plans.health(self._facts_of(), with_retrieval=self._settings.retrieval is not None)
        return self._run("health", plan, timeout_s, traceparent, retry=False)

    def _run(
        self,
        operation: str,
        plan: plans.Plan[T],
        timeout_s: float | None,
        traceparent: str | None,
        *,
        retry: bool = True,
    ) -> T:
        """Drives a plan to its end; ``AsyncResRankClient._run`` is its twin."""
        attempts = self._settings.max_attempts if retry else 1
        with self._call(operation, timeout_s, traceparent) as state:
            try:
                calls = next(plan)
                while True:
                    try:
                        results = self._perform(calls, state, attempts)
                    except ResRankError as error:
                        calls = plan.throw(error)
                    else:
                        calls = plan.send(results)
            except StopIteration as end:
                result: T = end.value
                return result

    def _perform(self, calls: Sequence[Call[Any]], state: CallState, attempts: int) -> list[Any]:
        if len(calls) == 1:
            # In the caller's own thread, which spares a rerank of one pass two switches of threads.
            (call,) = calls
            until = state.leaving(call.reserve)
            return [Retrying(**retry_policy(attempts, until.deadline))(self._send, call, until)]
        results: list[Any] = [None] * len(calls)
        waiting = deque(enumerate(calls))

        def work() -> None:
            while True:
                try:
                    index, call = waiting.popleft()
                except IndexError:
                    return
                until = state.leaving(call.reserve)
                try:
                    results[index] = Retrying(**retry_policy(attempts, until.deadline))(self._send, call, until)
                except BaseException:
                    waiting.clear()
                    raise

        # After an error nothing more is sent, and what is under way is waited for, at most until the deadline. It is
        # not cancelled: a cancellation that meets a full queue in an ensemble crashes Triton 2.51 (the race of its
        # issue 8034) where queues are Triton's, and within an ensemble it saves no work.
        with ThreadPoolExecutor(min(len(calls), self._settings.max_in_flight), "resrank") as pool:
            workers = [pool.submit(work) for _ in range(min(len(calls), self._settings.max_in_flight))]
            try:
                wait(workers, return_when=FIRST_EXCEPTION)
            finally:
                waiting.clear()
        for worker in workers:
            worker.result()
        return results

    def _send(self, call: Call[T], state: CallState) -> T:
        address, _ = self._endpoint(call)
        with request_span(call, address, state.context) as trace:
            method = self._method(call)
            request = call.build(state.deadline.require(call.subject))
            timeout = state.deadline.require(call.subject)
            try:
                response = method(request, timeout=timeout, metadata=(*state.metadata, *trace))
            except grpc.RpcError as error:
                if self._closed and error.code() is grpc.StatusCode.CANCELLED:
                    raise ResRankError(CLOSED) from error
                typed = to_resrank_error(call, error.code(), error.details(), state.deadline)
                if isinstance(typed, ServerUnavailableError):
                    self._facts_of(call.address).clear()
                raise typed from error
            except ValueError as error:  # grpc's word for a channel that was closed meanwhile
                raise ResRankError(CLOSED) from error
            return call.parse(response)

    def _open(self, address: str, tls: TlsConfig | None) -> grpc.Channel:
        return open_channel(address, tls)
