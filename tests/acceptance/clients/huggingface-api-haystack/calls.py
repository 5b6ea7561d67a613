"""Haystack's HuggingFaceTEIRanker."""

from __future__ import annotations

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

from acceptance import BASE_URL, DOCUMENTS, KEY, QUERY, answers

with answers("HuggingFaceTEIRanker.run") as answer:
    ranker = HuggingFaceTEIRanker(url=BASE_URL, token=Secret.from_token(KEY), top_k=3)
    found = ranker.run(query=QUERY, documents=[Document(content=text) for text in DOCUMENTS])["documents"]
    answer.ranked([DOCUMENTS.index(document.content) for document in found], [document.score for document in found])
