"""pymilvus.model's function for TEI, which gives five results whatever top_k says."""

from __future__ import annotations

from pymilvus.model.reranker import TEIRerankFunction

from acceptance import BASE_URL, DOCUMENTS, QUERY, answers

with answers("TEIRerankFunction") as answer:
    found = TEIRerankFunction(api_url=BASE_URL)(QUERY, DOCUMENTS)[:3]
    answer.ranked([result.index for result in found], [result.score for result in found])
