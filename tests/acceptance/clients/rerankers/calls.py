"""The rerankers package by way of an API."""

from __future__ import annotations

from rerankers import Reranker

from acceptance import BASE_URL, DOCUMENTS, KEY, QUERY, answers

for provider, path in (("cohere", "/v1/rerank"), ("jina", "/v1/rerank"), ("text-embeddings-inference", "/rerank")):
    with answers(f"Reranker.rank {provider}") as answer:
        reranker = Reranker(
            "resrank", model_type="APIRanker", api_provider=provider, api_key=KEY, url=f"{BASE_URL}{path}"
        )
        best = reranker.rank(query=QUERY, docs=DOCUMENTS).results[:3]
        answer.ranked([result.doc_id for result in best], [result.score for result in best])
