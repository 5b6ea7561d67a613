"""LangChain's CohereRerank, which orders documents."""

from __future__ import annotations

from langchain_cohere import CohereRerank
from langchain_core.documents import Document

from acceptance import BASE_URL, DOCUMENTS, KEY, QUERY, answers

with answers("CohereRerank.compress_documents") as answer:
    reranker = CohereRerank(cohere_api_key=KEY, base_url=BASE_URL, model="resrank", top_n=3)
    found = reranker.compress_documents([Document(page_content=text) for text in DOCUMENTS], QUERY)
    answer.ranked(
        [DOCUMENTS.index(document.page_content) for document in found],
        [document.metadata["relevance_score"] for document in found],
    )
