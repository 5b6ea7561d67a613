"""Haystack's NvidiaRanker."""

from __future__ import annotations

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.nvidia import NvidiaRanker

from acceptance import BASE_URL, DOCUMENTS, KEY, QUERY, answers

with answers("NvidiaRanker.run") as answer:
    ranker = NvidiaRanker(model="resrank", api_url=f"{BASE_URL}/v1", api_key=Secret.from_token(KEY), top_k=3)
    ranker.warm_up()
    found = ranker.run(query=QUERY, documents=[Document(content=text) for text in DOCUMENTS])["documents"]
    answer.ranked([DOCUMENTS.index(document.content) for document in found])
