"""Collections in Milvus: searched by vector alone."""
