"""What LlamaIndex's users ask a postprocessor and a retriever for."""

from __future__ import annotations

import pytest
from llama_index.core import Settings
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import NodeWithScore, TextNode

from acceptance import BEST, DOCUMENTS, QUERY
from resrank.client import AsyncResRankClient, F, InvalidInputError, ResRankClient
from resrank.client.integrations.llama_index import ResRankPostprocessor, ResRankRetriever
from resrank.client.integrations.searching import SearchingOptions

GIVEN = [NodeWithScore(node=TextNode(id_=f"d{place}", text=text), score=0.5) for place, text in enumerate(DOCUMENTS)]


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node.node_id for node in nodes]


def falling(nodes: list[NodeWithScore]) -> list[float]:
    scores = [node.score or 0.0 for node in nodes]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    return scores


async def test_postprocessor_orders(client: ResRankClient, async_client: AsyncResRankClient) -> None:
    postprocessor = ResRankPostprocessor(client=client, async_client=async_client, top_n=3)
    found = postprocessor.postprocess_nodes(GIVEN, query_str=QUERY)
    assert ids(found)[0] == f"d{BEST}"
    assert len(falling(found)) == 3
    assert {node.score for node in GIVEN} == {0.5}  # the caller's own stay as they were
    assert await postprocessor.apostprocess_nodes(GIVEN, query_str=QUERY) == found
    assert await ResRankPostprocessor(client=client, top_n=3).apostprocess_nodes(GIVEN, query_str=QUERY) == found
    assert postprocessor.postprocess_nodes([], query_str=QUERY) == []
    with pytest.raises(InvalidInputError, match=r"^query_bundle: is missing"):
        postprocessor.postprocess_nodes(GIVEN)
    assert set(postprocessor.to_dict()) & {"client", "async_client"} == set()


def test_postprocessor_reads_stored_vectors_by_id(client: ResRankClient) -> None:
    textless = [NodeWithScore(node=TextNode(id_=node.node.node_id, text="")) for node in GIVEN]
    unknown = NodeWithScore(node=TextNode(id_="none", text=""))
    found = ResRankPostprocessor(client=client, stored=True).postprocess_nodes([unknown, *textless], query_str=QUERY)
    searched = ResRankRetriever(client).retrieve(QUERY)
    assert ids(found) == [*ids(searched), "none"]
    assert falling(found) == pytest.approx([*falling(searched), 0.0], abs=1e-5)


@pytest.mark.parametrize("stored", [True, False])
def test_postprocessor_fails_open_where_that_is_wanted(lost: ResRankClient, stored: bool) -> None:
    found = ResRankPostprocessor(client=lost, stored=stored, top_n=4).postprocess_nodes(GIVEN, query_str=QUERY)
    assert found == GIVEN[:4]


async def test_retriever_searches(client: ResRankClient, async_client: AsyncResRankClient) -> None:
    found = ResRankRetriever(client, similarity_top_k=3).retrieve(QUERY)
    assert ids(found)[0] == f"d{BEST}"
    assert found[0].text == DOCUMENTS[BEST]
    assert found[0].metadata["title"] == f"Title {BEST + 1}"
    assert len(falling(found)) == 3
    assert await ResRankRetriever(client, async_client, similarity_top_k=3).aretrieve(QUERY) == found
    assert await ResRankRetriever(client, similarity_top_k=3).aretrieve(QUERY) == found  # in a thread
    dense = ResRankRetriever(client, options=SearchingOptions(mode="dense", rerank=False)).retrieve(QUERY)
    assert dense[0].score == dense[0].metadata["dense_score"]
    kept = ResRankRetriever(client, options=SearchingOptions(filter=F("place") >= 3)).retrieve(QUERY)
    assert {node.metadata["place"] for node in kept} == {3.0, 4.0}


def test_both_in_a_query_engine(client: ResRankClient) -> None:
    Settings.llm = MockLLM()  # the engine asks for one whether or not it is used
    synthesizer = get_response_synthesizer(response_mode=ResponseMode.NO_TEXT)
    engine: BaseQueryEngine = RetrieverQueryEngine(
        ResRankRetriever(client, options=SearchingOptions(rerank=False)),
        synthesizer,
        node_postprocessors=[ResRankPostprocessor(client=client, stored=True, top_n=2)],
    )
    assert ids(engine.query(QUERY).source_nodes)[0] == f"d{BEST}"
