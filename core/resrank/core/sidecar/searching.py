"""A search as its callers word it to the sidecar, and the sidecar's answer read: the same for client and server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import EncoderMismatchError, InvalidInputError, RetrievalError
from resrank.core.filters import Filter
from resrank.core.fusion import CosineMap, Fusion
from resrank.core.metadata import Metadata
from resrank.core.search import SearchMode
from resrank.core.sidecar.filter_messages import filter_message
from resrank.core.sidecar.metadata_messages import read_metadata
from resrank.core.sidecar.v1 import retrieval_pb2
from resrank.core.sidecar.words import ENCODER_MISMATCH

_PROTO_MODES = {
    SearchMode.HYBRID: retrieval_pb2.SEARCH_MODE_HYBRID,
    SearchMode.DENSE: retrieval_pb2.SEARCH_MODE_DENSE,
    SearchMode.LEXICAL: retrieval_pb2.SEARCH_MODE_LEXICAL,
}
_PROTO_FUSIONS = {Fusion.WEIGHTED: retrieval_pb2.FUSION_WEIGHTED, Fusion.RRF: retrieval_pb2.FUSION_RRF}


@dataclass(frozen=True)
class Candidates:
    """What a search found, in retrieval order.

    Attributes:
        ids: Of the passages.
        scores: The retriever's, FP32 [n].
        dense_scores: Cosines with the query, FP32 [n]; None for a search by words alone.
        lexical_scores: BM25, FP32 [n]; None for a search by embedding alone.
        max_lexical_score: Of any passage of the index for the query that meets the filter.
        titles: Of the passages; empty when they were not asked for.
        texts: Likewise.
        metadata: Likewise, of each passage.
        embeddings: FP16 [n, d] as stored; None when they were not asked for or nothing was found.
    """

    ids: Sequence[str]
    scores: NDArray[np.float32]
    dense_scores: NDArray[np.float32] | None
    lexical_scores: NDArray[np.float32] | None
    max_lexical_score: float
    titles: Sequence[str]
    texts: Sequence[str]
    metadata: Sequence[Metadata]
    embeddings: NDArray[np.float16] | None


def search_request(
    query: str,
    embedding: NDArray[np.float32] | None,
    *,
    mode: SearchMode,
    k: int,
    encoder_sha256: str | None,
    include_texts: bool,
    include_embeddings: bool,
    fusion: Fusion = Fusion.WEIGHTED,
    lexical_weight: float | None = None,
    cosine_map: CosineMap | None = None,
    collection: str = "",
    condition: Filter | None = None,
    include_metadata: bool = False,
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
        fusion: How ``hybrid`` joins both lists.
        lexical_weight: With ``weighted``, w; None for the default.
        cosine_map: With ``weighted``, A; None for the identity.
        collection: Whose passages, by name or alias; empty for the default one's.
        condition: What the passages' metadata must meet; None for nothing.
        include_metadata: Whether the metadata is wanted.
    """
    request = retrieval_pb2.SearchRequest(
        mode=_PROTO_MODES[mode],
        k=k,
        embedding=b"" if embedding is None else embedding.astype("<f4", copy=False).tobytes(),
        text="" if mode is SearchMode.DENSE else query,
        encoder_sha256=encoder_sha256 or "",
        include_texts=include_texts,
        include_embeddings=include_embeddings,
        collection=collection,
        filter=None if condition is None else filter_message(condition),
        include_metadata=include_metadata,
    )
    if mode is SearchMode.HYBRID:
        request.fusion = _PROTO_FUSIONS[fusion]
        if lexical_weight is not None:
            request.lexical_weight = lexical_weight
        if cosine_map is not None:
            request.cosine_map.slope = cosine_map.slope
            request.cosine_map.center = cosine_map.center
            request.cosine_map.offset = cosine_map.offset
    return request


def read_candidates(response: retrieval_pb2.SearchResponse, request: retrieval_pb2.SearchRequest) -> Candidates:
    """Reads an answer.

    Args:
        response: The sidecar's.
        request: What it was asked.

    Raises:
        RetrievalError: The index belongs to another encoder, the sidecar knows nothing of what it was asked, or scores,
            embeddings or metadata are not what they are said to be.
    """
    check_encoder(response.encoder_sha256, request.encoder_sha256 or None)
    if (request.HasField("filter") or request.collection) and not response.collection:
        raise RetrievalError(
            "the retrieval sidecar is of a version that passes filters and collections over: bring it to this release"
        )
    count = len(response.ids)
    embeddings = None
    if request.include_embeddings and count:
        expected = count * response.dimension * 2
        if len(response.embeddings) != expected:
            raise RetrievalError(
                f"the retrieval sidecar sent {len(response.embeddings)} bytes of embeddings where "
                f"{count} x {response.dimension} fp16 take {expected}"
            )
        embeddings = np.frombuffer(response.embeddings, dtype="<f2").reshape(count, response.dimension)
    columns = {
        name: np.array(getattr(response, name), dtype=np.float32)
        for name in ("scores", "dense_scores", "lexical_scores")
    }
    for name, column in columns.items():
        if len(column) != count and (name == "scores" or len(column)):
            raise RetrievalError(f"the retrieval sidecar sent {len(column)} {name} for {count} passages")
    if len(response.metadata) not in (0, count):
        raise RetrievalError(f"the retrieval sidecar sent {len(response.metadata)} metadata for {count} passages")
    try:
        metadata = [read_metadata(message) for message in response.metadata]
    except InvalidInputError as error:
        raise RetrievalError(f"the retrieval sidecar sent metadata that is none: {error.problem}") from error
    return Candidates(
        response.ids,
        columns["scores"],
        columns["dense_scores"] if len(columns["dense_scores"]) else None,
        columns["lexical_scores"] if len(columns["lexical_scores"]) else None,
        response.max_lexical_score,
        response.titles,
        response.texts,
        metadata,
        embeddings,
    )


def encoder_mismatch(index: str, server: str) -> str:
    """One sentence that says which two encoders met."""
    return (
        f"{ENCODER_MISMATCH} {index}, Triton serves encoder {server}: "
        "rebuild the index with this encoder or serve the checkpoint that built it"
    )


def check_encoder(index: str, server: str | None) -> None:
    """Refuses an index of another encoder than the server's; an empty index belongs to none yet.

    Raises:
        EncoderMismatchError: The two differ.
    """
    if index and server is not None and index != server:
        raise EncoderMismatchError(encoder_mismatch(index, server))
