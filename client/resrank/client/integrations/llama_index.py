"""LlamaIndex: a node postprocessor that reranks, and a retriever over the index."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from resrank.client import AsyncResRankClient, ResRankClient
from resrank.client.integrations.ranking import PlacedDocument, RankingOptions, rank, rank_async
from resrank.client.integrations.searching import FoundPassage, SearchingOptions, search, search_async
from resrank.core.errors import InvalidInputError
from resrank.core.search import DEFAULT_K


class ResRankPostprocessor(BaseNodePostprocessor):
    """Reranks nodes that some retriever found, best first; their scores become relevance, 0 to 1.

    The reranker reads candidates beside each other: give it all that were retrieved, not a few at a time.

    Attributes:
        client: Speaks to the servers; whoever made it closes it.
        async_client: The same for ``apostprocess_nodes``, which without it works in a thread.
        top_n: Nodes to return; None for all.
        min_score: Least relevance of what is returned, 0 to 1.
        stored: Whether nodes are passages of the index, known by their ids: no text is sent or encoded.
        lexical_weight: Of stored passages: w of BM25; None for the checkpoint's.
        collection: Of stored passages: whose they are, by name or alias; empty for the default one.
        truncate: Whether texts over the token maximum are cut, else refused.
        on_failure: What to do where the models are down, full or late: ``error``, or ``retrieval_order`` for the nodes
            as they came, with the scores that they came with. None for the client's setting.
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

    @classmethod
    def class_name(cls) -> str:
        """LlamaIndex's name of it."""
        return "ResRankPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query(query_bundle)
        return _ordered(nodes, rank(self.client, query, self._given(nodes), self._options) if nodes else [])

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if self.async_client is None:
            return await super()._apostprocess_nodes(nodes, query_bundle)
        query = _query(query_bundle)
        if not nodes:
            return []
        return _ordered(nodes, await rank_async(self.async_client, query, self._given(nodes), self._options))

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

    def _given(self, nodes: Sequence[NodeWithScore]) -> list[str]:
        if self.stored:
            return [node.node.node_id for node in nodes]
        return [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]


class ResRankRetriever(BaseRetriever):
    """Searches the index behind the sidecar and reranks what it finds.

    Nodes have the passage's id and text, as score its relevance (0 to 1; the retriever's own score where nothing was
    reranked), and beside the passage's own metadata ``title`` and what the score is made of.

    Args:
        client: Speaks to Triton and the sidecar; whoever made it closes it.
        async_client: The same for ``aretrieve``, which without it works in a thread.
        similarity_top_k: Passages to return.
        options: How the search is done.
    """

    def __init__(
        self,
        client: ResRankClient,
        async_client: AsyncResRankClient | None = None,
        *,
        similarity_top_k: int = DEFAULT_K,
        options: SearchingOptions | None = None,
    ) -> None:
        super().__init__()
        self._client = client
        self._async_client = async_client
        self._k = similarity_top_k
        self._options = SearchingOptions() if options is None else options

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [_node(found) for found in search(self._client, query_bundle.query_str, self._k, self._options)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if self._async_client is None:
            return await asyncio.to_thread(self._retrieve, query_bundle)
        found = await search_async(self._async_client, query_bundle.query_str, self._k, self._options)
        return [_node(each) for each in found]


def _query(query_bundle: QueryBundle | None) -> str:
    if query_bundle is None:
        raise InvalidInputError("query_bundle", "is missing: give query_bundle or query_str")
    return query_bundle.query_str


def _ordered(nodes: Sequence[NodeWithScore], placed: Sequence[PlacedDocument]) -> list[NodeWithScore]:
    return [
        NodeWithScore(
            node=nodes[each.index].node, score=nodes[each.index].score if each.relevance is None else each.relevance
        )
        for each in placed
    ]


def _node(found: FoundPassage) -> NodeWithScore:
    node = TextNode(id_=found.passage.id or "", text=found.passage.text or "", metadata=found.metadata)
    return NodeWithScore(node=node, score=found.passage.score if found.relevance is None else found.relevance)
