"""LangChain's NVIDIARerank, which asks for the models first."""

from __future__ import annotations

from langchain_core.documents import Document
from langchain_nvidia_ai_endpoints import NVIDIARerank

from acceptance import BASE_URL, DOCUMENTS, KEY, QUERY, answers

with answers("NVIDIARerank.compress_documents") as answer:
    reranker = NVIDIARerank(base_url=f"{BASE_URL}/v1", api_key=KEY, model="resrank", top_n=3)
    found = reranker.compress_documents([Document(page_content=text) for text in DOCUMENTS], QUERY)
    answer.ranked([DOCUMENTS.index(document.page_content) for document in found])
