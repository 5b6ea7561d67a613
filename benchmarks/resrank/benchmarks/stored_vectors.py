"""Fills a sidecar's index with vectors that are at hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resrank.client.sidecar import AsyncSidecar
from resrank.core.corpus import Passage
from resrank.core.limits import MAX_MESSAGE_RECORDS
from resrank.core.metadata import MetadataValue


def store_vectors(
    address: str,
    encoder_sha256: str,
    vectors: NDArray[np.floating[Any]],
    metadata: Sequence[dict[str, MetadataValue]] | None = None,
) -> None:
    """Stores vectors, each row by its number as id, with a short title and no text.

    Args:
        address: ``host:port`` of the sidecar.
        encoder_sha256: Whose vectors they pretend to be.
        vectors: Floats [n, d].
        metadata: Of each row; None for none.
    """
    passages = [
        Passage(number + 1, str(number), f"passage {number}", "", {} if metadata is None else metadata[number])
        for number in range(len(vectors))
    ]
    store_passages(address, encoder_sha256, passages, vectors)


def store_passages(
    address: str, encoder_sha256: str, passages: Sequence[Passage], vectors: NDArray[np.floating[Any]]
) -> None:
    """Stores passages of distinct ids with their vectors, floats [len(passages), d], in as few batches as may be."""

    async def store() -> None:
        async with AsyncSidecar(address) as sidecar:
            for start in range(0, len(passages), MAX_MESSAGE_RECORDS):
                block = slice(start, start + MAX_MESSAGE_RECORDS)
                await sidecar.upsert(encoder_sha256, passages[block], vectors[block])

    asyncio.run(store())
