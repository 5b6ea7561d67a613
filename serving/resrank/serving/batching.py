"""Which rows go through an engine together, and to which sizes their batch is padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from resrank.core.buckets import bucket_length
from resrank.core.names import Model, Parameter
from resrank.serving.bucket_parameters import read_buckets
from resrank.serving.row_groups import group_rows

CPU_CALL_COST = 48
"""Positions that take as long as a call's fixed part (see ``group_rows``). Measured with OpenVINO bf16 on 2 cores as
intercept over slope of time against positions: 45 for a 22M encoder, 20 for a 135M reranker, and 20 to 30 more when
the engine first sees a shape."""

CPU_MAX_POSITIONS = 8192
"""Positions in one call. Measured as above: time per position falls until about 64 rows of 128 tokens, then rises."""

CPU_LENGTH_MULTIPLE = 16
"""Rows are padded to a multiple of this. OpenVINO keeps what it prepared for each shape that it meets: a 22M encoder's
process grew by 1.7 MB a shape (1 MB with its cache off), without an end while lengths and rows were free. Its bf16
products also fall into slow blockings at some row counts: measured on 2 cores with a 135M decoder, 136 ms at 158
positions and 172 at 168, but 114 at 160 and 125 at 176."""

CPU_ROWS = (1, 2, 4, 8, 16, 32, 64)
"""Rows in one call, for the same reason; other numbers are split, so that no row is padding."""

GPU_CALL_COST = 256
"""As above for a GPU, where a call's fixed part is above all the reading of the weights. That takes as long as the
products of F/B positions: each reads a weight's 2 bytes at B bytes/s, or does 2 operations with it at F operations/s.
From NVIDIA's data sheets of the 80 GB A100, the H100 and H200 SXM and the L4 (dense bf16): 153, 295, 206 and 403."""

GPU_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Batch sizes on a GPU: each shape that an engine sees costs it the compilation of kernels or the capture of a graph,
and at most a third of these rows is padding."""


@dataclass(frozen=True)
class BatchingPolicy:
    """What suits one engine on one device.

    Attributes:
        call_cost: See ``group_rows``.
        max_positions: See ``group_rows``.
        max_rows: Rows in one call.
        lengths: What rows are padded to, ascending; empty for no more than their batch needs.
        candidates: What the reranker's candidates are padded to; likewise.
        row_counts: What a batch is padded to; likewise.
        sizes: Rows that a call may have; any number when empty.
    """

    call_cost: int
    max_positions: int
    max_rows: int
    lengths: tuple[int, ...] = ()
    candidates: tuple[int, ...] = ()
    row_counts: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    @classmethod
    def on_cpu(cls, *, max_rows: int, max_tokens: int) -> Self:
        """For OpenVINO, ONNX Runtime and torch on a CPU.

        Args:
            max_rows: Of the model's config.
            max_tokens: Longest row.
        """
        lengths = (*range(CPU_LENGTH_MULTIPLE, max_tokens, CPU_LENGTH_MULTIPLE), max_tokens)
        sizes = tuple(rows for rows in CPU_ROWS if rows <= max_rows)
        return cls(CPU_CALL_COST, CPU_MAX_POSITIONS, max_rows, lengths, sizes=sizes)

    @classmethod
    def on_gpu(cls, role: Model, parameters: Mapping[str, str], *, max_rows: int, max_tokens: int) -> Self:
        """For engines that run fastest at shapes that they know.

        Args:
            role: ``encoder`` or ``reranker``.
            parameters: Of the model's config; they name the buckets.
            max_rows: Of the model's config, which is what the engine takes.
            max_tokens: Longest row.

        Raises:
            InvalidInputError: Buckets that are none.
        """
        name = Parameter.TOKEN_BUCKETS if role is Model.ENCODER else Parameter.SEQUENCE_BUCKETS
        return cls(
            GPU_CALL_COST,
            max_rows * max_tokens,
            max_rows,
            read_buckets(parameters, name),
            read_buckets(parameters, Parameter.CANDIDATE_BUCKETS) if role is Model.RERANKER else (),
            (*(rows for rows in GPU_ROWS if rows < max_rows), max_rows),
        )

    def group(self, lengths: Sequence[int]) -> list[NDArray[np.int64]]:
        """Splits rows into calls, each of similar lengths.

        Args:
            lengths: Positions of each row, without padding.

        Returns:
            Row indices of each call.
        """
        padded = [self.padded_length(length) for length in lengths]
        groups = group_rows(padded, call_cost=self.call_cost, max_positions=self.max_positions, sizes=self.sizes)
        return [
            group[start : start + self.max_rows] for group in groups for start in range(0, len(group), self.max_rows)
        ]

    def padded_length(self, length: int) -> int:
        """Positions that a batch gets whose longest row has ``length``."""
        return _padded(length, self.lengths)

    def padded_candidates(self, count: int, length: int) -> int:
        """Candidates that a batch gets.

        Args:
            count: Of the row with most.
            length: Positions of the batch. Without sizes of their own the candidates get as many places, so that they
                add no shapes to those of the lengths: a place costs the projectors alone.
        """
        return _padded(count, self.candidates) if self.candidates or not self.lengths else length

    def padded_rows(self, count: int) -> int:
        """Rows that a batch of ``count`` gets."""
        return _padded(count, self.row_counts)


def _padded(size: int, sizes: Sequence[int]) -> int:
    return bucket_length(size, sizes) if sizes else size
