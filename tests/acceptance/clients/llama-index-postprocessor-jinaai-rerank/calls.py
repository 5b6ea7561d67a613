"""LlamaIndex' JinaRerank."""

from __future__ import annotations

from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.jinaai_rerank import JinaRerank

from acceptance import BASE_URL, DOCUMENTS, KEY, QUERY, answers

with answers("JinaRerank.postprocess_nodes") as answer:
    reranker = JinaRerank(api_key=KEY, base_url=f"{BASE_URL}/v1", model="resrank", top_n=3)
    found = reranker.postprocess_nodes([NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS], query_str=QUERY)
    answer.ranked([DOCUMENTS.index(node.node.get_content()) for node in found], [node.score for node in found])
