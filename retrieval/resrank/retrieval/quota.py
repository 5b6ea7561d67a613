"""What a collection may hold and what it takes, kept in the same transaction as its records."""

from __future__ import annotations

from dataclasses import dataclass

from resrank.core.errors import QuotaExceededError
from resrank.core.sidecar.words import QUOTA_EXCEEDED
from resrank.retrieval.records import Encoder

_SIZE = " + ".join(f"length(CAST({column} AS BLOB))" for column in ("id", "title", "text", "metadata", "vector"))

TAKEN = f"SELECT coalesce(sum({_SIZE}), 0) FROM records JOIN vectors USING (key)"
"""What all records take."""

TAKEN_FROM = f"{TAKEN} WHERE key >= ?"
"""What the records from a key on take."""

TAKEN_BY = f"SELECT {_SIZE} FROM records JOIN vectors USING (key) WHERE key = ?"
"""What one record takes."""

SCHEMA = f"""
-- One row. Bytes are those of ids, titles, texts, metadata as JSON and vectors; a quota of 0 is none.
CREATE TABLE usage(bytes INTEGER NOT NULL, quota_records INTEGER NOT NULL, quota_bytes INTEGER NOT NULL);
INSERT INTO usage SELECT ({TAKEN}), 0, 0;
"""
"""For an empty store and for one of an earlier schema alike."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What a collection may hold; 0 is no bound.

    Attributes:
        records: Records at most.
        bytes: Of ids, titles, texts, metadata as JSON and fp16 embeddings together, at most.
    """

    records: int = 0
    bytes: int = 0

    def check(self, records: int, bytes_: int) -> None:
        """Refuses a growth beyond the quota; called inside the transaction that grows, which is undone.

        Args:
            records: Records that the collection would have.
            bytes_: What they would take.

        Raises:
            QuotaExceededError: One of them is too much.
        """
        for unit, limit, value in (("records", self.records, records), ("bytes", self.bytes, bytes_)):
            if limit and value > limit:
                raise QuotaExceededError(
                    f"{QUOTA_EXCEEDED}: the collection would hold too many {unit} (limit {limit}, got {value}); "
                    "nothing of the batch is stored: delete records, or use a collection with a larger quota"
                )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a collection takes at one moment.

    Attributes:
        encoder: The encoder that it belongs to, None while nothing was ever stored.
        record_count: Records in it.
        bytes: What they take.
        quota: What it may hold.
    """

    encoder: Encoder | None
    record_count: int
    bytes: int
    quota: Quota


NO_QUOTA = Quota()
"""As the default collection has it."""
