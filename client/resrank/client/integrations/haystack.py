"""Haystack: a ranker component."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from haystack import Document, component
from haystack.utils import Secret

from resrank.client import ResRankClient
from resrank.client.integrations.ranking import RankingOptions, rank
from resrank.client.settings import DEFAULT_TIMEOUT_S, DEFAULT_TRITON_ADDRESS
from resrank.core.errors import InvalidInputError


@component
class ResRankRanker:
    """Reranks documents that some retriever found, best first; their scores become relevance, 0 to 1.

    The reranker reads candidates beside each other: give it all that were retrieved, not a few at a time. A pipeline
    writes and reads it by its arguments, which are also its attributes.

    Args:
        triton: ``host:port`` of Triton's gRPC endpoint.
        retrieval: The same of the retrieval sidecar; only ``stored`` needs it.
        token: Sent as a bearer token to both.
        timeout_s: Budget of a call in seconds.
        top_k: Documents to return; None for all. That of ``run`` goes before it.
        min_score: Least relevance of what is returned, 0 to 1.
        stored: Whether documents are passages of the index, known by their ids: no text is sent or encoded.
        lexical_weight: Of stored passages: w of BM25; None for the checkpoint's.
        collection: Of stored passages: whose they are, by name or alias; empty for the default one.
        truncate: Whether texts over the token maximum are cut, else refused.
        on_failure: What to do where the models are down, full or late: ``error``, or ``retrieval_order`` for the
            documents as they came, with the scores that they came with.
    """

    def __init__(
        self,
        triton: str = DEFAULT_TRITON_ADDRESS,
        retrieval: str | None = None,
        token: Secret | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        top_k: int | None = None,
        min_score: float | None = None,
        stored: bool = False,
        lexical_weight: float | None = None,
        truncate: bool = True,
        on_failure: str = "error",
        collection: str = "",
    ) -> None:
        self.triton = triton
        self.retrieval = retrieval
        self.token = token
        self.timeout_s = timeout_s
        self.top_k = top_k
        self.min_score = min_score
        self.stored = stored
        self.lexical_weight = lexical_weight
        self.truncate = truncate
        self.on_failure = on_failure
        self.collection = collection
        self._options = RankingOptions(top_k, min_score, stored, lexical_weight, truncate, on_failure, collection)
        self._client: ResRankClient | None = None

    def warm_up(self) -> None:
        """Makes the client, which connects at its first request.

        Raises:
            InvalidInputError: An address, the time or ``on_failure`` is wrong.
        """
        if self._client is None:
            self._client = ResRankClient(
                self.triton,
                retrieval=self.retrieval,
                timeout_s=self.timeout_s,
                bearer_token=None if self.token is None else self.token.resolve_value(),
                on_failure=self.on_failure,
            )

    def close(self) -> None:
        """Closes the client; the next call makes another."""
        if self._client is not None:
            self._client.close()
            self._client = None

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """Ranks documents.

        Args:
            query: The query.
            documents: In retrieval order.
            top_k: Documents to return; None for the component's own.

        Returns:
            ``documents``, best first. Those without text come last.

        Raises:
            InvalidInputError: The query or ``top_k`` breaks a rule.
            ResRankError: What the client raises.
        """
        if not documents:
            return {"documents": []}
        options = self._options if top_k is None else replace(self._options, top_n=top_k)
        if options.top_n is not None and options.top_n < 1:
            raise InvalidInputError("top_k", "too small", limit=1, value=options.top_n)
        self.warm_up()
        assert self._client is not None
        given = [document.id if self.stored else document.content or "" for document in documents]
        placed = rank(self._client, query, given, options)
        return {
            "documents": [
                documents[each.index]
                if each.relevance is None
                else replace(documents[each.index], score=each.relevance)
                for each in placed
            ]
        }

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """As :meth:`run`, in a thread: a pipeline's event loops come and go, and channels of gRPC belong to one."""
        return await asyncio.to_thread(self.run, query, documents, top_k)
