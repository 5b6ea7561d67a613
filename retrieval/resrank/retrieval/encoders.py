"""The rule that an index's vectors come from one encoder."""

from __future__ import annotations

from resrank.core.errors import EncoderMismatchError, InvalidInputError
from resrank.core.sidecar.words import ENCODER_MISMATCH
from resrank.retrieval.records import Encoder, SearchQuery


def require_query_encoder(encoder: Encoder, query: SearchQuery) -> None:
    """Refuses a query whose embedding is not of the index's encoder.

    Raises:
        EncoderMismatchError: It names another one.
        InvalidInputError: Its dimension is another.
    """
    if query.encoder_sha256 is not None and query.encoder_sha256 != encoder.sha256:
        raise EncoderMismatchError(
            f"{ENCODER_MISMATCH} {encoder.sha256}, the query's embedding comes from {query.encoder_sha256}: "
            "search with the index's encoder"
        )
    if query.embedding is not None and len(query.embedding) != encoder.dimension:
        raise InvalidInputError(
            "embedding", "dimension is not the index's", limit=encoder.dimension, value=len(query.embedding)
        )


def require_batch_encoder(encoder: Encoder, batch: Encoder) -> None:
    """Refuses a batch whose vectors are not of the index's encoder.

    Raises:
        EncoderMismatchError: They are of another, or of another dimension.
    """
    if encoder != batch:
        raise EncoderMismatchError(
            f"the index holds vectors of encoder {encoder.sha256} with dimension {encoder.dimension}, "
            f"the batch brings those of encoder {batch.sha256} with dimension {batch.dimension}: "
            "encode with the index's encoder, or build another index"
        )
