"""The cohere SDK's two clients."""

from __future__ import annotations

import cohere

from acceptance import BASE_URL, DOCUMENTS, KEY, QUERY, answers

with answers("ClientV2.rerank") as answer:
    found = cohere.ClientV2(api_key=KEY, base_url=BASE_URL).rerank(
        model="resrank", query=QUERY, documents=DOCUMENTS, top_n=3
    )
    answer.ranked([result.index for result in found.results], [result.relevance_score for result in found.results])
with answers("Client.rerank") as answer:
    found = cohere.Client(api_key=KEY, base_url=BASE_URL).rerank(
        model="resrank", query=QUERY, documents=DOCUMENTS, top_n=3, return_documents=True
    )
    answer.ranked([result.index for result in found.results], [result.relevance_score for result in found.results])
