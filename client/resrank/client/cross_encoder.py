"""The two methods of sentence-transformers' ``CrossEncoder`` that rank, for programs that are written against them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from resrank.client.client import ResRankClient
from resrank.client.inputs import whole_number
from resrank.client.triton_calls import Float32
from resrank.core.errors import InvalidInputError


class RankingCrossEncoder:
    """``rank`` and ``predict`` over a :class:`~resrank.client.client.ResRankClient`, whose errors they raise.

    A cross-encoder scores each pair by itself. This reranker reads a query's whole list: a score holds among the
    documents that it was given with.

    Args:
        client: Speaks to the server; the caller closes it.
        truncate: Cut texts over the token maximum, as ``CrossEncoder`` does, instead of refusing them.
    """

    def __init__(self, client: ResRankClient, *, truncate: bool = True) -> None:
        self._client = client
        self._truncate = truncate

    def rank(
        self, query: str, documents: Sequence[str], top_k: int | None = None, return_documents: bool = False
    ) -> list[dict[str, Any]]:
        """Orders documents by how well they answer a query.

        Args:
            query: The query.
            documents: At least one.
            top_k: How many to return; None for all.
            return_documents: Whether ``text`` is told as well.

        Returns:
            Best first, ``corpus_id`` (the place in ``documents``), ``score`` and ``text``.

        Raises:
            InvalidInputError: The query, a document or ``top_k`` breaks a rule.
        """
        if top_k is not None and whole_number("top_k", top_k) < 1:
            raise InvalidInputError("top_k", "too small", limit=1, value=top_k)
        found = self._client.rerank(query, passages=documents, truncate=self._truncate).passages[:top_k]
        return [
            {"corpus_id": passage.index, "score": passage.score} | ({"text": passage.text} if return_documents else {})
            for passage in found
        ]

    def predict(self, sentences: Sequence[tuple[str, str] | list[str]]) -> Float32:
        """Scores the pairs of one query, which are its list.

        Args:
            sentences: Pairs of query and document.

        Returns:
            FP32 [n], in the order of the pairs.

        Raises:
            InvalidInputError: The pairs are of several queries, or are none.
        """
        pairs = list(sentences)
        if wrong := [place for place, pair in enumerate(pairs) if not _is_pair(pair)]:
            raise InvalidInputError(f"sentences[{wrong[0]}]", "must be a pair of query and document")
        queries = {query for query, _ in pairs}
        if len(queries) != 1:
            raise InvalidInputError(
                "sentences",
                "a listwise reranker scores the documents of one query together: call predict, or better rank, once "
                "for each query",
                limit="1 query",
                value=len(queries),
            )
        scores = np.empty(len(pairs), np.float32)
        for row in self.rank(queries.pop(), [document for _, document in pairs]):
            scores[row["corpus_id"]] = row["score"]
        return scores


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
