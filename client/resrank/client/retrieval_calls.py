"""Requests to the retrieval sidecar."""

from __future__ import annotations

from functools import partial

from resrank.client.calls import Call, Server
from resrank.client.results import RetrievalHealth
from resrank.client.triton_calls import Float32
from resrank.core.sidecar.searching import Candidates, Mode, read_candidates, search_request
from resrank.core.sidecar.v1 import retrieval_pb2


def search(
    query: str, embedding: Float32 | None, *, mode: Mode, k: int, encoder_sha256: str | None, include_embeddings: bool
) -> Call[Candidates]:
    """Asks for the best ``k`` passages, with titles and texts.

    Args:
        query: The query's text.
        embedding: FP32 [d]; None in ``lexical`` mode.
        mode: How to look.
        k: How many.
        encoder_sha256: The encoder behind the ``rerank`` model; None when no encoder is involved.
        include_embeddings: Whether the reranker will need the stored vectors.
    """
    return Call(
        server=Server.RETRIEVAL,
        method="Search",
        subject=f"{mode} search",
        build=lambda _: search_request(
            query,
            embedding,
            mode=mode,
            k=k,
            encoder_sha256=encoder_sha256,
            include_texts=True,
            include_embeddings=include_embeddings,
        ),
        parse=partial(read_candidates, encoder_sha256=encoder_sha256, include_embeddings=include_embeddings),
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
