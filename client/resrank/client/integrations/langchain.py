"""LangChain: a document compressor that reranks, and a retriever over the index."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun, Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict, Field

from resrank.client import AsyncResRankClient, ResRankClient
from resrank.client.integrations.ranking import PlacedDocument, RankingOptions, rank, rank_async
from resrank.client.integrations.searching import FoundPassage, SearchingOptions, search, search_async
from resrank.core.errors import InvalidInputError, Place
from resrank.core.search import DEFAULT_CANDIDATES, DEFAULT_K, SearchMode


class ResRankCompressor(BaseDocumentCompressor):
    """Reranks documents that some retriever found: ``metadata["relevance_score"]``, best first.

    The reranker reads candidates beside each other: give it all that were retrieved, not a few at a time.

    Attributes:
        client: Speaks to the servers; whoever made it closes it.
        async_client: The same for ``acompress_documents``, which without it works in a thread.
        top_n: Documents to return; None for all.
        min_score: Least relevance of what is returned, 0 to 1.
        stored: Whether documents are passages of the index, known by ``Document.id``: no text is sent or encoded.
        lexical_weight: Of stored passages: w of BM25; None for the checkpoint's.
        collection: Of stored passages: whose they are, by name or alias; empty for the default one.
        truncate: Whether texts over the token maximum are cut, else refused.
        on_failure: What to do where the models are down, full or late: ``error``, or ``retrieval_order`` for the
            documents as they came, without ``relevance_score``. None for the client's setting.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    client: ResRankClient = Field(exclude=True, repr=False)
    async_client: AsyncResRankClient | None = Field(default=None, exclude=True, repr=False)
    top_n: int | None = Field(default=None, ge=1)
    min_score: float | None = Field(default=None, ge=0, le=1)
    stored: bool = False
    lexical_weight: float | None = None
    truncate: bool = True
    on_failure: str | None = None
    collection: str = ""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The best of the documents.

        Args:
            documents: In retrieval order.
            query: The query.
            callbacks: LangChain's; nothing here calls them.

        Raises:
            ResRankError: What the client raises.
        """
        if not documents:
            return []
        return self._ordered(documents, rank(self.client, query, self._given(documents), self._options))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """As :meth:`compress_documents`."""
        if self.async_client is None:
            return await super().acompress_documents(documents, query, callbacks)
        if not documents:
            return []
        placed = await rank_async(self.async_client, query, self._given(documents), self._options)
        return self._ordered(documents, placed)

    @property
    def _options(self) -> RankingOptions:
        return RankingOptions(
            self.top_n,
            self.min_score,
            self.stored,
            self.lexical_weight,
            self.truncate,
            self.on_failure,
            self.collection,
        )

    def _given(self, documents: Sequence[Document]) -> list[str]:
        if not self.stored:
            return [document.page_content for document in documents]
        return [_id(place, document) for place, document in enumerate(documents)]

    @staticmethod
    def _ordered(documents: Sequence[Document], placed: Sequence[PlacedDocument]) -> list[Document]:
        ordered = []
        for each in placed:
            document = documents[each.index]
            score = {} if each.relevance is None else {"relevance_score": each.relevance}
            metadata = {name: value for name, value in document.metadata.items() if name != "relevance_score"}
            ordered.append(document.model_copy(update={"metadata": metadata | score}))
        return ordered


class ResRankRetriever(BaseRetriever):
    """Searches the index behind the sidecar and reranks what it finds.

    Documents have the passage's id, text as ``page_content``, and beside the passage's own metadata ``title``,
    ``relevance_score`` (0 to 1) and what it is made of.

    Attributes:
        client: Speaks to Triton and the sidecar; whoever made it closes it.
        async_client: The same for ``ainvoke``, which without it works in a thread.
        k: Passages to return; ``invoke(query, k=3)`` goes before it.
        filter: What a passage's metadata must meet to be found, as text: ``year >= 2020 and lang = 'en'``. None for
            nothing; ``invoke(query, filter=…)`` goes before it.
        candidates: Passages to retrieve and rerank.
        mode: How they are found: ``hybrid``, ``dense`` or ``lexical``.
        rerank: Whether the reranker orders them.
        lexical_weight: w of BM25; None for the checkpoint's.
        min_score: Least relevance of what is returned, 0 to 1; of a reranked search alone.
        collection: Whose passages, by name or alias; empty for the default one.
        truncate: Whether a query over the token maximum is cut, else refused.
        on_failure: What to do where the models are down, full or late: ``error``, or ``retrieval_order`` for the
            passages as they were found, without ``relevance_score``. None for the client's setting.
    """

    client: ResRankClient = Field(exclude=True, repr=False)
    async_client: AsyncResRankClient | None = Field(default=None, exclude=True, repr=False)
    k: int = Field(default=DEFAULT_K, ge=1)
    filter: str | None = None
    candidates: int = Field(default=DEFAULT_CANDIDATES, ge=1)
    mode: SearchMode = SearchMode.HYBRID
    rerank: bool = True
    lexical_weight: float | None = None
    min_score: float | None = Field(default=None, ge=0, le=1)
    truncate: bool = True
    on_failure: str | None = None
    collection: str = ""

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: str | None = None,
    ) -> list[Document]:
        found = search(self.client, query, self.k if k is None else k, self._options(filter))
        return [_document(each) for each in found]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: str | None = None,
    ) -> list[Document]:
        if self.async_client is None:
            search_in_thread = partial(
                self._get_relevant_documents, query, run_manager=run_manager.get_sync(), k=k, filter=filter
            )
            return await run_in_executor(None, search_in_thread)
        found = await search_async(self.async_client, query, self.k if k is None else k, self._options(filter))
        return [_document(each) for each in found]

    def _options(self, wanted: str | None) -> SearchingOptions:
        return SearchingOptions(
            self.candidates,
            self.mode,
            self.rerank,
            self.lexical_weight,
            self.min_score,
            self.truncate,
            self.on_failure,
            self.collection,
            self.filter if wanted is None else wanted,
        )


def _id(place: int, document: Document) -> str:
    if document.id is None:
        raise InvalidInputError(Place("documents", (place,)), "has no id, by which a stored passage is known")
    return document.id


def _document(found: FoundPassage) -> Document:
    return Document(page_content=found.passage.text or "", id=found.passage.id, metadata=found.metadata)
