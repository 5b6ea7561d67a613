"""LiteLLM's rerank by three of its providers."""

from __future__ import annotations

import litellm

from acceptance import BASE_URL, DOCUMENTS, KEY, QUERY, answers

for provider, base in (("cohere/resrank", BASE_URL), ("hosted_vllm/resrank", BASE_URL), ("jina_ai/resrank", BASE_URL)):
    with answers(f"rerank {provider}") as answer:
        found = litellm.rerank(model=provider, query=QUERY, documents=DOCUMENTS, top_n=3, api_base=base, api_key=KEY)
        answer.ranked(
            [result["index"] for result in found.results], [result["relevance_score"] for result in found.results]
        )
