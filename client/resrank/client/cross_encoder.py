"""The two methods of sentence-transformers' ``CrossEncoder`` that rank, for programs that are written against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeGuard, overload

import numpy as np

from resrank.client.client import ResRankClient
from resrank.client.inputs import check_list, whole_number
from resrank.client.triton_calls import Float32
from resrank.core.documents import fit_query, sort_texts
from resrank.core.errors import InvalidInputError, Place
from resrank.core.names import Tensor
from resrank.core.truncation import Side

_OF_SPEED: Final = frozenset({"batch_size", "show_progress_bar", "num_workers", "device", "pool", "chunk_size"})
"""Options of ``CrossEncoder`` that change how fast it computes, which here is the server's affair."""

_OF_RESULT: Final = {
    "activation_fn": None,
    "apply_softmax": False,
    "convert_to_numpy": True,
    "convert_to_tensor": False,
}
"""Options that change what comes back, and what they are where nobody names them."""


class RankingCrossEncoder:
    """``rank`` and ``predict`` over a :class:`~resrank.client.client.ResRankClient`, whose errors they raise.

    A cross-encoder scores each pair by itself. This reranker reads a query's whole list: a score holds among the
    documents that it was given with.

    Args:
        client: Speaks to the server; the caller closes it.
        truncate: Cut query and texts that are too long, in tokens or bytes, as ``CrossEncoder`` does, instead of
            refusing them.
    """

    def __init__(self, client: ResRankClient, *, truncate: bool = True) -> None:
        self._client = client
        self._truncate = truncate

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Orders documents by how well they answer a query.

        Args:
            query: The query.
            documents: At least one.
            top_k: How many to return; None for all.
            return_documents: Whether ``text`` is told as well.
            **options: ``CrossEncoder``'s others. What is about its own speed (``batch_size``, ``show_progress_bar``,
                ``num_workers``, ``device``, ``pool``, ``chunk_size``) has no effect; what changes the result
                (``activation_fn``, ``apply_softmax``, ``convert_to_tensor``, ``convert_to_numpy``) may only be what it
                is by default.

        Returns:
            Best first, ``corpus_id`` (the place in ``documents``), ``score`` and ``text``.

        Raises:
            InvalidInputError: The query, a document, ``top_k`` or an option breaks a rule.
        """
        _check_options("rank", options)
        if top_k is not None and whole_number("top_k", top_k) < 1:
            raise InvalidInputError("top_k", "too small", limit=1, value=top_k)
        return [
            {"corpus_id": place, "score": score} | ({"text": documents[place]} if return_documents else {})
            for place, score in self._ranked(query, documents, "documents")[:top_k]
        ]

    def _ranked(self, query: str, documents: Sequence[str], field: str) -> list[tuple[int, float]]:
        """Place and score of each document, best first; errors call the list by the caller's name."""
        check_list(field, documents)
        query = fit_query(query, truncate=self._truncate, side=Side.RIGHT)
        fitted = sort_texts(documents, truncate=self._truncate, side=Side.RIGHT, strict=True, field=field)
        try:
            found = self._client.rerank(query, passages=fitted.usable, truncate=self._truncate)
        except InvalidInputError as error:
            if error.place.name in (Tensor.PASSAGES, Tensor.TEXT):
                raise error.at(Place(field, error.place.index)) from None
            raise
        return [(passage.index, passage.score) for passage in found.passages]

    @overload
    def predict(self, sentences: tuple[str, str], **options: Any) -> np.float32: ...

    @overload
    def predict(self, sentences: Sequence[tuple[str, str] | list[str]], **options: Any) -> Float32: ...

    def predict(
        self, sentences: Sequence[tuple[str, str] | list[str]] | tuple[str, str], **options: Any
    ) -> Float32 | np.float32:
        """Scores the pairs of one query, which are its list.

        Args:
            sentences: Pairs of query and document, or one pair.
            **options: As for :meth:`rank`.

        Returns:
            FP32 [n], in the order of the pairs; of one pair that was not in a list, its score.

        Raises:
            InvalidInputError: The pairs are of several queries, or are none, or an option breaks a rule.
        """
        _check_options("predict", options)
        if _is_pair(sentences):
            (score,) = self.predict([sentences])
            return np.float32(score)
        pairs: list[Any] = list(sentences)
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
        for place, score in self._ranked(queries.pop(), [document for _, document in pairs], "sentences"):
            scores[place] = score
        return scores


def _is_pair(pair: object) -> TypeGuard[tuple[str, str]]:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def _check_options(method: str, options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if name in _OF_SPEED:
            continue
        if name not in _OF_RESULT:
            raise TypeError(f"{method}() got an unexpected keyword argument {name!r}")
        if value is not _OF_RESULT[name]:
            raise InvalidInputError(
                name,
                "would change the result, which is the server's",
                limit=f"{_OF_RESULT[name]}, the default",
                value=value,
            )
