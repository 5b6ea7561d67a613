"""LlamaIndex' CohereRerank."""

from __future__ import annotations

from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank

from acceptance import BASE_URL, DOCUMENTS, KEY, QUERY, answers

with answers("CohereRerank.postprocess_nodes") as answer:
    reranker = CohereRerank(api_key=KEY, base_url=BASE_URL, model="resrank", top_n=3)
    found = reranker.postprocess_nodes([NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS], query_str=QUERY)
    answer.ranked([DOCUMENTS.index(node.node.get_content()) for node in found], [node.score for node in found])
