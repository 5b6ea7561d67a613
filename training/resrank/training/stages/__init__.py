"""The stages of training: encoder alignment (1a), reranker alignment (1b), joint (2)."""
