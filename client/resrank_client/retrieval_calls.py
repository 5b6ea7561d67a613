"""Requests to the retrieval sidecar and the reading of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from resrank.errors import InvalidInputError, RetrievalError
from resrank.retrieval.v1 import retrieval_pb2
from resrank_client.calls import Call, Server
from resrank_client.inputs import Float16
from resrank_client.results import RetrievalHealth
from resrank_client.triton_calls import Float32

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
        titles: Of the passages.
        texts: Of the passages.
        embeddings: FP16 [n, d] as stored; None when they were not asked for or nothing was found.
    """

    ids: Sequence[str]
    scores: Sequence[float]
    titles: Sequence[str]
    texts: Sequence[str]
    embeddings: Float16 | None


def check_mode(mode: str) -> None:
    """Refuses a mode that there is not.

    Raises:
        InvalidInputError: Not one of :data:`Mode`.
    """
    if mode not in _PROTO_MODES:
        raise InvalidInputError("mode", "unknown", limit=" or ".join(get_args(Mode)), value=mode)


def search(
    query: str, embedding: Float32 | None, *, mode: Mode, k: int, encoder_sha256: str | None, include_embeddings: bool
) -> Call[Candidates]:
    """Asks for the best ``k`` passages.

    Args:
        query: The query's text; not sent in ``dense`` mode.
        embedding: FP32 [d]; None in ``lexical`` mode.
        mode: How to look.
        k: How many.
        encoder_sha256: The encoder behind the ``rerank`` model, which the index must belong to; None when no encoder
            is involved.
        include_embeddings: Whether the reranker will need the stored vectors.
    """

    def parse(response: retrieval_pb2.SearchResponse) -> Candidates:
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

    return Call(
        server=Server.RETRIEVAL,
        method="Search",
        subject=f"{mode} search",
        build=lambda _: retrieval_pb2.SearchRequest(
            mode=_PROTO_MODES[mode],
            k=k,
            embedding=b"" if embedding is None else embedding.astype("<f4", copy=False).tobytes(),
            text="" if mode == "dense" else query,
            encoder_sha256=encoder_sha256 or "",
            include_texts=True,
            include_embeddings=include_embeddings,
        ),
        parse=parse,
    )


def describe() -> Call[RetrievalHealth]:
    """Asks what the index holds and to which encoder it belongs."""
    return Call(
        server=Server.RETRIEVAL,
        method="Describe",
        subject="description of the index",
        build=lambda _: retrieval_pb2.DescribeRequest(),
        parse=lambda response: RetrievalHealth(
            encoder_sha256=response.encoder_sha256 or None,
            embedding_dim=response.dimension or None,
            documents=response.record_count,
        ),
    )


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
