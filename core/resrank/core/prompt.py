"""The reranker's input sequence, laid out in this one place for training, export and serving.

    [ before_query | query | before_passages | slot_1 .. slot_N | after_passages | EOS ]

or, for a reranker without text, the slots alone. A slot holds a placeholder id; the engine puts x_i in its place. Rows
are contiguous and padded on the right, so that causal attention needs no mask: nothing valid ever sees padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
_Number = TypeVar("_Number", np.float16, np.float32)


@dataclass(frozen=True)
class PromptBatch:
    """Rows of one forward pass.

    Attributes:
        input_ids: INT64 [B, S], right-padded with the placeholder id.
        passage_positions: INT64 [B, N'], ascending; padding repeats a row's last position, so that a padded candidate,
            which repeats the row's last vector, is written to the place where it already stands.
        last_position: INT64 [B, 1], where EOS stands, or the last slot without text.
        candidate_count: INT64 [B, 1], N of each row.
    """

    input_ids: Int64
    passage_positions: Int64
    last_position: Int64
    candidate_count: Int64


@dataclass(frozen=True)
class PromptLayout:
    """The fixed token ids around query and passages.

    Attributes:
        before_query: Ids that open the sequence.
        before_passages: Ids between the query and the first slot.
        after_passages: Ids between the last slot and EOS.
        eos_id: The id whose position yields the query's state; None for slots alone, without query and text.
        placeholder_id: The id in slots and padding; its embedding is never read by anything valid.
    """

    before_query: tuple[int, ...]
    before_passages: tuple[int, ...]
    after_passages: tuple[int, ...]
    eos_id: int | None
    placeholder_id: int

    @classmethod
    def of_slots_alone(cls) -> Self:
        """The layout of a reranker that reads neither the query's text nor any other."""
        return cls((), (), (), eos_id=None, placeholder_id=0)

    @property
    def reads_text(self) -> bool:
        """Whether anything but slots stands in the sequence, the query's text among it."""
        return self.eos_id is not None

    def length(self, query_tokens: int, candidates: int) -> int:
        """Number of positions of a row; without text the query has none, however long it is."""
        if not self.reads_text:
            return candidates
        fixed = len(self.before_query) + len(self.before_passages) + len(self.after_passages) + 1
        return fixed + query_tokens + candidates

    def batch(
        self, queries: Sequence[Sequence[int]], counts: Sequence[int], *, min_length: int = 1, min_candidates: int = 1
    ) -> PromptBatch:
        """Lays out one row per query.

        Args:
            queries: Token ids of each query, unequal lengths allowed; of none without text.
            counts: Number of candidates of each query, at least 1.
            min_length: Least S, a bucket's length for instance.
            min_candidates: Least N', likewise.

        Returns:
            The arrays of :class:`PromptBatch`, S and N' being the longest row's or the least that are asked for.
        """
        rows = len(queries)
        longest = max(self.length(len(query), count) for query, count in zip(queries, counts, strict=True))
        ids = np.full((rows, max(longest, min_length)), self.placeholder_id, dtype=np.int64)
        positions = np.empty((rows, max(*counts, min_candidates)), dtype=np.int64)
        last = np.empty((rows, 1), dtype=np.int64)
        for row, (query, count) in enumerate(zip(queries, counts, strict=True)):
            head = [*self.before_query, *query, *self.before_passages]
            first_slot, after = len(head), len(head) + count
            ids[row, :first_slot] = head
            tail = [*self.after_passages, *self._eos]
            ids[row, after : after + len(tail)] = tail
            last[row, 0] = after + len(tail) - 1
            positions[row, :count] = np.arange(first_slot, after)
            positions[row, count:] = after - 1
        return PromptBatch(ids, positions, last, np.asarray(counts, dtype=np.int64)[:, None])

    @property
    def _eos(self) -> tuple[int, ...]:
        return () if self.eos_id is None else (self.eos_id,)


def pad_candidates(candidates: NDArray[_Number], width: int) -> NDArray[_Number]:
    """Repeats each row's last candidate until it has ``width`` of them (see :class:`PromptBatch`).

    Args:
        candidates: [B, N, F], vectors (FP16) or relations (FP32), N at least 1.
        width: N', at least N.

    Returns:
        [B, N', F].
    """
    missing = width - candidates.shape[1]
    if missing == 0:
        return candidates
    return np.concatenate([candidates, np.repeat(candidates[:, -1:], missing, axis=1)], axis=1)
