"""LangChain's own tests of retrievers, and what its users ask a compressor for."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import RetrieversIntegrationTests

from acceptance import BEST, DOCUMENTS, QUERY
from resrank.client import AsyncResRankClient, InvalidInputError, ResRankClient
from resrank.client.integrations.langchain import ResRankCompressor, ResRankRetriever

GIVEN = [
    Document(page_content=text, id=f"d{place}", metadata={"source": place}) for place, text in enumerate(DOCUMENTS)
]


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def clients(self, client: ResRankClient, async_client: AsyncResRankClient) -> None:
        self._clients = {"client": client, "async_client": async_client}

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return ResRankRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return self._clients

    @property
    def retriever_query_example(self) -> str:
        return QUERY


def sources(found: Any) -> list[int]:
    return [document.metadata["source"] for document in found]


async def test_retriever_tells_ids_titles_and_scores(client: ResRankClient, async_client: AsyncResRankClient) -> None:
    found = ResRankRetriever(client=client, k=3).invoke(QUERY)
    assert found[0].id == f"d{BEST}"
    assert found[0].page_content == DOCUMENTS[BEST]
    assert found[0].metadata["title"] == f"Title {BEST + 1}"
    scores = [document.metadata["relevance_score"] for document in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert await ResRankRetriever(client=client, async_client=async_client).ainvoke(QUERY, k=3) == found
    assert await ResRankRetriever(client=client, k=3).ainvoke(QUERY) == found  # in a thread
    assert "relevance_score" not in ResRankRetriever(client=client, rerank=False).invoke(QUERY)[0].metadata
    kept = ResRankRetriever(client=client, async_client=async_client, filter="place >= 3")
    assert {document.metadata["place"] for document in kept.invoke(QUERY)} == {3.0, 4.0}
    assert [document.id for document in await kept.ainvoke(QUERY, filter="place = 0")] == ["d0"]
    assert [d.id for d in await ResRankRetriever(client=client).ainvoke(QUERY, filter="place = 0")] == ["d0"]


async def test_compressor_orders(client: ResRankClient, async_client: AsyncResRankClient) -> None:
    compressor = ResRankCompressor(client=client, async_client=async_client, top_n=3)
    found = compressor.compress_documents(GIVEN, QUERY)
    assert sources(found)[0] == BEST
    assert len(found) == 3
    scores = [document.metadata["relevance_score"] for document in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert "relevance_score" not in GIVEN[BEST].metadata  # the caller's own stay as they were
    assert await compressor.acompress_documents(GIVEN, QUERY) == found
    assert await ResRankCompressor(client=client, top_n=3).acompress_documents(GIVEN, QUERY) == found
    least = (scores[0] + scores[1]) / 2
    assert sources(ResRankCompressor(client=client, min_score=least).compress_documents(GIVEN, QUERY)) == [BEST]
    assert compressor.compress_documents([], QUERY) == []


def test_compressor_puts_what_cannot_be_ranked_last(client: ResRankClient) -> None:
    given = [Document(page_content=" ", metadata={"source": "blank"}), *GIVEN]
    found = ResRankCompressor(client=client).compress_documents(given, QUERY)
    assert (found[-1].metadata, len(found)) == ({"source": "blank", "relevance_score": 0.0}, len(given))
    twice = ResRankCompressor(client=client).compress_documents([GIVEN[0], GIVEN[BEST], GIVEN[BEST]], QUERY)
    assert sources(twice) == [BEST, BEST, 0]  # a text may stand there twice


def test_compressor_reads_stored_vectors_by_id(client: ResRankClient) -> None:
    compressor = ResRankCompressor(client=client, stored=True)
    textless = [Document(page_content="", id=document.id, metadata=document.metadata) for document in GIVEN]
    found = compressor.compress_documents([Document(page_content="", id="none"), *textless, textless[0]], QUERY)
    searched = ResRankRetriever(client=client, mode="hybrid", k=5).invoke(QUERY)
    assert [document.id for document in found[:5]] == [document.id for document in searched]
    scores = [document.metadata["relevance_score"] for document in found]
    assert scores[:5] == pytest.approx([document.metadata["relevance_score"] for document in searched], abs=1e-5)
    assert [(document.id, score) for document, score in zip(found[5:], scores[5:], strict=True)] == [
        ("none", 0.0),
        ("d0", 0.0),
    ]
    with pytest.raises(InvalidInputError, match=r"^documents\[0\]: has no id"):
        compressor.compress_documents([Document(page_content="a text")], QUERY)


@pytest.mark.parametrize("stored", [True, False])
def test_compressor_fails_open_where_that_is_wanted(lost: ResRankClient, stored: bool) -> None:
    found = ResRankCompressor(client=lost, stored=stored, top_n=4).compress_documents(GIVEN, QUERY)
    assert found == GIVEN[:4]
