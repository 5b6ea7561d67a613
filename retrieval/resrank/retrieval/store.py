"""The interface behind the service.

Another engine (Milvus, say) is one more class with :class:`VectorStore`'s methods; the gRPC service knows nothing else.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from resrank.retrieval.records import (
    IndexDescription,
    RecordBatch,
    SearchHits,
    SearchQuery,
    StoredRecord,
    UpsertCounts,
    WordScores,
)


class VectorStore(Protocol):
    """Records, their vectors, and search over both. Methods may be called from several threads at once."""

    def search(self, query: SearchQuery) -> SearchHits:
        """Finds the best records, of those that meet the filter as many as are wanted or there are.

        What a filter means is what :func:`resrank.core.filters.matches` says. An empty index has no results.

        Raises:
            InvalidInputError: The embedding's dimension is not the index's, or the filter does not fit the fields
                (:func:`resrank.core.filters.check_filter`).
            EncoderMismatchError: The query names another encoder than the index's.
        """

    def upsert(self, batch: RecordBatch) -> UpsertCounts:
        """Stores a batch durably, all of it or nothing; on return it survives a crash and is found by search.

        Raises:
            InvalidInputError: A record has a field of metadata with another type than the others that have it.
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

    def list_ids(self, after: str, limit: int) -> list[str]:
        """At most ``limit`` ids of records, those after an id in the order of their UTF-8 bytes."""

    def word_scores(self, text: str, ids: Sequence[str]) -> WordScores:
        """BM25 of records for a query, and the best that any record has; ids that are not there are absent."""

    def export(self) -> Generator[RecordBatch, None, None]:
        """All records as they are at one moment, in the order of their ids' UTF-8 bytes, while writes go on.

        Yields:
            Batches that :meth:`upsert` takes, with the metadata and the vectors' bytes as they were stored, of at most
            ``MAX_MESSAGE_RECORDS`` records and some MiB; none where there is no record. Close the iterator when it is
            not read to its end. It may be driven by one thread after the other.

        Raises:
            RetrievalError: A record is not what was stored.
        """

    def describe(self) -> IndexDescription:
        """Tells what the index holds."""

    def maintain(self) -> None:
        """Does what can wait until a write has been acknowledged: compaction, snapshots. Never fails."""

    def close(self) -> None:
        """Releases everything; what is derived is saved for a quick start."""
