"""The interfaces behind the service: a vector store, and the dense index inside the local one.

Another engine (Milvus, say) is one more class with :class:`VectorStore`'s methods; the gRPC service knows nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from resrank_retrieval.records import (
    FloatVector,
    HalfMatrix,
    IndexDescription,
    Keys,
    RecordBatch,
    SearchHits,
    SearchQuery,
    StoredRecord,
    UpsertCounts,
)


class VectorStore(Protocol):
    """Records, their vectors, and search over both. Methods may be called from several threads at once."""

    def search(self, query: SearchQuery) -> SearchHits:
        """Finds the best records.

        Raises:
            InvalidInputError: The embedding's dimension is not the index's.
            EncoderMismatchError: The query names another encoder than the index's.
        """

    def upsert(self, batch: RecordBatch) -> UpsertCounts:
        """Stores a batch durably, all of it or nothing; on return it survives a crash and is found by search.

        Raises:
            EncoderMismatchError: The index belongs to another encoder.
            StoreWriteError: The disk refused; nothing of the batch is stored.
        """

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Removes records durably, all of those present or none.

        Returns:
            The ids that were not there, in the order given.

        Raises:
            StoreWriteError: The disk refused; nothing was removed.
        """

    def get(self, ids: Sequence[str], *, include_texts: bool, include_embeddings: bool) -> dict[str, StoredRecord]:
        """Reads records by id; those that are not there are absent from the answer."""

    def describe(self) -> IndexDescription:
        """Tells what the index holds."""

    def maintain(self) -> None:
        """Does what can wait until a write has been acknowledged: compaction, snapshots. Never fails."""

    def close(self) -> None:
        """Releases everything; what is derived is saved for a quick start."""


class DenseIndex(Protocol):
    """Nearest neighbours by cosine over vectors known by key, and the vectors themselves.

    Readers may run at once; a writer must be alone (the store's lock sees to it).
    """

    @property
    def description(self) -> str:
        """Names the kind of index."""

    def search(self, query: FloatVector, k: int) -> tuple[Keys, FloatVector]:
        """Finds the nearest vectors.

        Args:
            query: fp32 [d], L2-normalised.
            k: How many are wanted.

        Returns:
            Keys and cosines of at most k vectors, best first.
        """

    def gather(self, keys: Keys) -> HalfMatrix:
        """The stored vectors of live keys, fp16 [len(keys), d], exactly as they were given."""

    def apply(self, removed: Keys, added: Keys, vectors: HalfMatrix) -> None:
        """Removes keys, then adds new ones, which must be greater than every key seen before."""
