"""Dual-stage joint training of encoder and reranker, and the evaluation that shows what it is worth."""
