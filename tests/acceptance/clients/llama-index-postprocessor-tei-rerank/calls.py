"""LlamaIndex' TextEmbeddingInference, as a reranker."""

from __future__ import annotations

from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

from acceptance import BASE_URL, DOCUMENTS, KEY, QUERY, answers

with answers("TextEmbeddingInference.postprocess_nodes") as answer:
    reranker = TextEmbeddingInference(base_url=BASE_URL, auth_token=f"Bearer {KEY}", top_n=3)
    found = reranker.postprocess_nodes([NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS], query_str=QUERY)
    answer.ranked([DOCUMENTS.index(node.node.get_content()) for node in found], [node.score for node in found])
