"""What Haystack's users ask a ranker for."""

from __future__ import annotations

import pytest
from filled_index import NOBODY, RETRIEVAL, TIMEOUT_S, TRITON
from haystack import Document, Pipeline
from haystack.utils import Secret

from acceptance import BEST, DOCUMENTS, QUERY
from resrank.client import InvalidInputError, ResRankClient
from resrank.client.integrations.haystack import ResRankRanker

GIVEN = [Document(id=f"d{place}", content=text, score=0.5) for place, text in enumerate(DOCUMENTS)]


def ids(documents: list[Document]) -> list[str]:
    return [document.id for document in documents]


@pytest.fixture
def ranker(client: ResRankClient) -> ResRankRanker:
    """``client`` has filled the index."""
    return ResRankRanker(TRITON, RETRIEVAL, timeout_s=TIMEOUT_S)


async def test_ranker_orders(ranker: ResRankRanker) -> None:
    found = ranker.run(query=QUERY, documents=GIVEN, top_k=3)["documents"]
    assert ids(found)[0] == f"d{BEST}"
    scores = [document.score or 0.0 for document in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert {document.score for document in GIVEN} == {0.5}  # the caller's own stay as they were
    assert (await ranker.run_async(query=QUERY, documents=GIVEN, top_k=3))["documents"] == found
    assert ranker.run(query=QUERY, documents=[]) == {"documents": []}
    with pytest.raises(InvalidInputError, match=r"^top_k: too small"):
        ranker.run(query=QUERY, documents=GIVEN, top_k=0)
    ranker.close()
    assert ranker.run(query=QUERY, documents=GIVEN, top_k=3)["documents"] == found
    ranker.close()


def test_ranker_reads_stored_vectors_by_id(client: ResRankClient) -> None:
    ranker = ResRankRanker(TRITON, RETRIEVAL, timeout_s=TIMEOUT_S, stored=True)
    given = [Document(id="none"), *(Document(id=document.id) for document in GIVEN), Document(id="d0")]
    found = ranker.run(query=QUERY, documents=given)["documents"]
    searched = client.search(QUERY, 5).passages
    assert ids(found) == [*(passage.id for passage in searched), "none", "d0"]
    assert [document.score for document in found[-2:]] == [0.0, 0.0]
    ranker.close()


@pytest.mark.parametrize("stored", [True, False])
def test_ranker_fails_open_where_that_is_wanted(stored: bool) -> None:
    ranker = ResRankRanker(NOBODY, NOBODY, stored=stored, top_k=4, on_failure="retrieval_order")
    assert ranker.run(query=QUERY, documents=GIVEN)["documents"] == GIVEN[:4]
    ranker.close()


async def test_ranker_in_pipelines_that_are_written_and_read(client: ResRankClient) -> None:
    pipeline = Pipeline()
    key = Secret.from_env_var("RESRANK_ACCEPTANCE_NO_KEY", strict=False)
    pipeline.add_component("ranker", ResRankRanker(TRITON, RETRIEVAL, key, TIMEOUT_S, top_k=2))
    read = Pipeline.loads(pipeline.dumps(), allowed_modules=["resrank.client.integrations.haystack"])
    asked = {"ranker": {"query": QUERY, "documents": GIVEN}}
    found = read.run(asked)["ranker"]["documents"]
    assert (ids(found)[0], len(found)) == (f"d{BEST}", 2)
    assert ids((await read.run_async(asked))["ranker"]["documents"]) == ids(found)
