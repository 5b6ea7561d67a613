"""Queries, and passages of made-up words, for what is measured through the servers and does not depend on meaning."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
from numpy.typing import NDArray

from resrank.core.addresses import NO_PROXY
from resrank.core.limits import MAX_GRPC_MESSAGE_BYTES, MAX_MESSAGE_RECORDS
from resrank.core.scoring import normalize
from resrank.core.sidecar.v1 import retrieval_pb2 as pb
from resrank.core.sidecar.v1 import retrieval_pb2_grpc

QUERIES = (
    "who wrote the first published algorithm?",
    "which river flows through the capital of France?",
    "when did two astronauts walk on the moon?",
    "what controlled the loom that wove patterns into silk?",
)

_WORDS = (
    "the of and in to a was is for as on with by he that it his at from an were are which this be had also has or one "
    "first their its new after but who not they two her she been other when time during there into all may more city "
    "world state year between team game war song album film series national school university station club league river"
)


def passage_texts(count: int, words: int, *, seed: int = 0) -> list[str]:
    """Different passages of equal length.

    Args:
        count: How many.
        words: In each.
        seed: Of the choice of words.
    """
    chosen = np.random.default_rng(seed).choice(_WORDS.split(), (count, words))
    return [f"{number} {' '.join(row)}" for number, row in enumerate(chosen)]


def unit_vectors(count: int, dimension: int) -> NDArray[np.float16]:
    """Random vectors of length 1, FP16 [count, dimension]."""
    vectors = np.random.default_rng(0).standard_normal((count, dimension), np.float32)
    halves: NDArray[np.float16] = normalize(vectors).astype(np.float16)
    return halves


def fill_with_sample(sidecar: str, encoder_sha256: str, dimension: int, count: int) -> None:
    """Stores passages of 60 words with random vectors.

    Args:
        sidecar: ``host:port`` of a sidecar with an empty index.
        encoder_sha256: Whose vectors they pretend to be.
        dimension: d.
        count: How many.
    """
    texts, vectors = passage_texts(count, 60), unit_vectors(count, dimension)

    def batches() -> Iterator[pb.UpsertRequest]:
        for start in range(0, count, MAX_MESSAGE_RECORDS):
            numbers = range(start, min(start + MAX_MESSAGE_RECORDS, count))
            yield pb.UpsertRequest(
                encoder_sha256=encoder_sha256,
                dimension=dimension,
                records=[
                    pb.Record(
                        id=f"passage-{number}",
                        title=f"passage {number}",
                        text=texts[number],
                        embedding=vectors[number].astype("<f2").tobytes(),
                    )
                    for number in numbers
                ],
            )

    options = [("grpc.max_send_message_length", MAX_GRPC_MESSAGE_BYTES), *NO_PROXY]
    with grpc.insecure_channel(sidecar, options) as channel:
        retrieval_pb2_grpc.RetrievalServiceStub(channel).Upsert(batches())
