"""A search as its callers word it to the sidecar, and the sidecar's answer read: the same for client and server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import InvalidInputError, RetrievalError
from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.sidecar.v1 import retrieval_pb2

Mode = Literal["hybrid", "dense", "lexical"]
"""How candidates are found: by both ways fused, by embedding, or by words."""

_PROTO_MODES: dict[Mode, retrieval_pb2.SearchMode.ValueType] = {
    "hybrid": retrieval_pb2.SEARCH_MODE_HYBRID,
    "dense": retrieval_pb2.SEARCH_MODE_DENSE,
    "lexical": retrieval_pb2.SEARCH_MODE_LEXICAL,
}


@dataclass(frozen=True)
class Candidates:
    """What a search found, in retrieval order.

    Attributes:
        ids: Of the passages.
        scores: The retriever's.
        titles: Of the passages; empty when they were not asked for.
        texts: Likewise.
        embeddings: FP16 [n, d] as stored; None when they were not asked for or nothing was found.
    """

    ids: Sequence[str]
    scores: Sequence[float]
    titles: Sequence[str]
    texts: Sequence[str]
    embeddings: NDArray[np.float16] | None


def check_mode(mode: str) -> Mode:
    """Returns a mode when it is one.

    Raises:
        InvalidInputError: Not one of :data:`Mode`.
    """
    for known in get_args(Mode):
        if mode == known:
            found: Mode = known
            return found
    raise InvalidInputError("mode", "unknown", limit=" or ".join(get_args(Mode)), value=mode)


def check_sizes(k: int, candidates: int) -> None:
    """Refuses sizes of a search that cannot be served.

    Raises:
        InvalidInputError: Fewer than 1 or more than ``MAX_MESSAGE_RECORDS``, or more results than candidates.
    """
    for name, value in (("k", k), ("candidates", candidates)):
        if value < 1:
            raise InvalidInputError(name, "too small", limit=1, value=value)
        if value > MAX_MESSAGE_RECORDS:
            raise InvalidInputError(name, "too large", limit=MAX_MESSAGE_RECORDS, value=value)
    if k > candidates:
        raise InvalidInputError("k", "more results than candidates", limit=candidates, value=k)


def search_request(
    query: str,
    embedding: NDArray[np.float32] | None,
    *,
    mode: Mode,
    k: int,
    encoder_sha256: str | None,
    include_texts: bool,
    include_embeddings: bool,
) -> retrieval_pb2.SearchRequest:
    """Words a search for the best ``k`` passages.

    Args:
        query: The query's text; not sent in ``dense`` mode.
        embedding: FP32 [d]; None in ``lexical`` mode.
        mode: How to look.
        k: How many.
        encoder_sha256: The encoder behind the ``rerank`` model, which the index must belong to; None when no encoder
            is involved.
        include_texts: Whether titles and texts are wanted.
        include_embeddings: Whether the reranker will need the stored vectors.
    """
    return retrieval_pb2.SearchRequest(
        mode=_PROTO_MODES[mode],
        k=k,
        embedding=b"" if embedding is None else embedding.astype("<f4", copy=False).tobytes(),
        text="" if mode == "dense" else query,
        encoder_sha256=encoder_sha256 or "",
        include_texts=include_texts,
        include_embeddings=include_embeddings,
    )


def read_candidates(
    response: retrieval_pb2.SearchResponse, *, encoder_sha256: str | None, include_embeddings: bool
) -> Candidates:
    """Reads an answer.

    Args:
        response: The sidecar's.
        encoder_sha256: As it was sent.
        include_embeddings: Likewise.

    Raises:
        RetrievalError: The index belongs to another encoder, or the embeddings are not what they are said to be.
    """
    check_encoder(response.encoder_sha256, encoder_sha256)
    count = len(response.ids)
    embeddings = None
    if include_embeddings and count:
        expected = count * response.dimension * 2
        if len(response.embeddings) != expected:
            raise RetrievalError(
                f"the retrieval sidecar sent {len(response.embeddings)} bytes of embeddings where "
                f"{count} x {response.dimension} fp16 take {expected}"
            )
        embeddings = np.frombuffer(response.embeddings, dtype="<f2").reshape(count, response.dimension)
    return Candidates(response.ids, response.scores, response.titles, response.texts, embeddings)


def encoder_mismatch(index: str, server: str) -> str:
    """One sentence that says which two encoders met."""
    return (
        f"the index belongs to encoder {index}, Triton serves encoder {server}: "
        "rebuild the index with this encoder or serve the checkpoint that built it"
    )


def check_encoder(index: str, server: str | None) -> None:
    """Refuses an index of another encoder than the server's; an empty index belongs to none yet.

    Raises:
        RetrievalError: The two differ.
    """
    if index and server is not None and index != server:
        raise RetrievalError(encoder_mismatch(index, server))
