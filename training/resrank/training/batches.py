"""Candidate lists and texts to tensors, by the tokenizers and the prompt layout that serving uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resrank.core.checkpoint import ENCODER_DIR, RERANKER_DIR, CheckpointSpec
from resrank.core.tokenization import EncoderTokenizer, PromptTokenizer
from resrank.training.lists import CandidateList

Int64 = NDArray[np.int64]

_TOKENIZED_TOGETHER = 4096
"""Texts tokenized and padded in one call where there are many: bounds the memory of their ids."""


@dataclass(frozen=True)
class Tokenizers:
    """What turns text into ids.

    Attributes:
        passages: Passages as the encoder reads them.
        queries: Queries as the encoder reads them.
        prompt: Queries as the reranker reads them, and the layout around them.
    """

    passages: EncoderTokenizer
    queries: EncoderTokenizer
    prompt: PromptTokenizer

    @classmethod
    def from_checkpoint(cls, folder: Path, spec: CheckpointSpec) -> Self:
        """Reads a checkpoint's tokenizers.

        Args:
            folder: The checkpoint.
            spec: Its fields.

        Raises:
            CheckpointError: A tokenizer cannot be read.
        """
        return cls(
            EncoderTokenizer(folder / ENCODER_DIR, spec.encoder, for_queries=False),
            EncoderTokenizer(folder / ENCODER_DIR, spec.encoder, for_queries=True),
            PromptTokenizer(folder / RERANKER_DIR, spec.reranker),
        )


@dataclass(frozen=True)
class TextChunk:
    """Texts of one encoder pass.

    Attributes:
        rows: INT64 [B] on the CPU, which of the texts stand here.
        input_ids: INT64 [B, L], padded on the right to the longest of the chunk.
        attention_mask: INT64 [B, L], 1 on tokens.
    """

    rows: Tensor
    input_ids: Tensor
    attention_mask: Tensor


def token_budget_chunks(
    tokenizer: EncoderTokenizer, texts: Sequence[str], batch_tokens: int, device: torch.device
) -> Iterator[TextChunk]:
    """Cuts any number of texts into chunks of bounded size, tokenizing as it goes.

    Args:
        tokenizer: One side of the encoder.
        texts: The texts; what is too long is cut.
        batch_tokens: Ids in one chunk at most, padding included; a single longer text is a chunk of its own.
        device: Where the chunks go.

    Yields:
        Chunks that hold every text once, texts of like length together.
    """
    # Characters stand in for tokens here, so that no more than one block of ids is in memory.
    by_characters = np.argsort([len(text) for text in texts], kind="stable")
    for start in range(0, len(texts), _TOKENIZED_TOGETHER):
        block = by_characters[start : start + _TOKENIZED_TOGETHER]
        tokens = tokenizer.encode([texts[row].encode() for row in block], truncate=True)
        lengths = tokens.attention_mask.sum(axis=1)
        order = np.argsort(lengths, kind="stable")
        first = 0
        while first < len(order):
            last = first + 1
            while last < len(order) and (last + 1 - first) * lengths[order[last]] <= batch_tokens:
                last += 1
            picked = order[first:last]
            yield _chunk(block[picked], tokens.input_ids[picked], tokens.attention_mask[picked], device)
            first = last


def equal_chunks(
    tokenizer: EncoderTokenizer, texts: Sequence[str], count: int, device: torch.device
) -> list[TextChunk]:
    """Cuts the texts of one step into a given number of chunks.

    Args:
        tokenizer: One side of the encoder.
        texts: At least one; what is too long is cut.
        count: How many chunks; where there are fewer texts, the first text fills the chunks that are left.
        device: Where the chunks go.

    Returns:
        Chunks whose numbers of texts differ by at most 1, from short texts to long ones. Every text stands in one,
        and a filling chunk has no rows to answer for.
    """
    tokens = tokenizer.encode([text.encode() for text in texts], truncate=True)
    order = np.argsort(tokens.attention_mask.sum(axis=1), kind="stable")
    chunks = [
        _chunk(picked, tokens.input_ids[picked], tokens.attention_mask[picked], device)
        for picked in np.array_split(order, min(count, len(texts)))
    ]
    filling = TextChunk(torch.empty(0, dtype=torch.int64), chunks[0].input_ids[:1], chunks[0].attention_mask[:1])
    return [*[filling] * (count - len(chunks)), *chunks]


def _chunk(rows: Int64, input_ids: Int64, attention_mask: Int64, device: torch.device) -> TextChunk:
    width = int(attention_mask.sum(axis=1).max())
    return TextChunk(
        torch.from_numpy(rows),
        torch.from_numpy(np.ascontiguousarray(input_ids[:, :width])).to(device),
        torch.from_numpy(np.ascontiguousarray(attention_mask[:, :width])).to(device),
    )


class TextPool:
    """Distinct texts, each with a row number."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Numbers texts in the order in which they first appear.

        Args:
            texts: The texts, repetitions allowed.
        """
        self._rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}

    def __len__(self) -> int:
        """The number of texts."""
        return len(self._rows)

    @property
    def texts(self) -> list[str]:
        """The texts by row."""
        return list(self._rows)

    def row(self, text: str) -> int | None:
        """A text's row, or None where it is not in the pool."""
        return self._rows.get(text)

    def passage_rows(self, candidates: CandidateList) -> Int64:
        """INT64 [N], the rows of a list's passages, all of which are in the pool."""
        return np.array([self._rows[passage.encoder_text] for passage in candidates.passages], dtype=np.int64)


@dataclass(frozen=True)
class RankingBatch:
    """Candidate lists of unequal length for one pass of the reranker.

    Attributes:
        input_ids: INT64 [B, S] of :class:`resrank.core.prompt.PromptBatch`.
        slots: INT64 [B, N], ``passage_positions`` there.
        last: INT64 [B, 1], ``last_position`` there.
        labels: FP32 [B, N], 0 on padding.
        valid: BOOL [B, N], False on padding.
    """

    input_ids: Tensor
    slots: Tensor
    last: Tensor
    labels: Tensor
    valid: Tensor


def ranking_batch(tokenizer: PromptTokenizer, lists: Sequence[CandidateList], device: torch.device) -> RankingBatch:
    """Lays out one row per list.

    Args:
        tokenizer: The reranker's; a query that is too long is cut.
        lists: The lists, each with its candidates in the order in which the reranker shall see them.
        device: Where the tensors go.
    """
    counts = [len(candidates) for candidates in lists]
    queries = [_prompt_query(tokenizer, candidates) for candidates in lists]
    prompt = tokenizer.layout.batch(queries, counts)
    valid = np.arange(max(counts)) < np.asarray(counts)[:, None]
    labels = np.zeros(valid.shape, dtype=np.float32)
    labels[valid] = np.concatenate([candidates.labels for candidates in lists])
    arrays = (prompt.input_ids, prompt.passage_positions, prompt.last_position, labels, valid)
    return RankingBatch(*(torch.from_numpy(array).to(device) for array in arrays))


def _prompt_query(tokenizer: PromptTokenizer, candidates: CandidateList) -> list[int]:
    text = candidates.query or candidates.wording
    return tokenizer.encode([text.encode()], truncate=True)[0] if text else []


def padded_rows(rows: Sequence[Int64]) -> Tensor:
    """Rows of each list's passages as one table, padded as :func:`resrank.core.prompt.pad_candidates` pads vectors.

    Args:
        rows: INT64 [N] of each list, unequal lengths allowed.

    Returns:
        INT64 [B, N'], each list's last row repeated.
    """
    columns = np.arange(max(len(row) for row in rows))
    return torch.from_numpy(np.stack([row[np.minimum(columns, len(row) - 1)] for row in rows]))


def contrastive_masks(
    lists: Sequence[CandidateList], pool: TextPool, hard_negatives: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which texts of a pool are positive for which query, and which take no part.

    Texts are compared, not list positions: a passage that another list brought along is positive where this list
    labels the same text relevant.

    Args:
        lists: One per query.
        pool: The passages that are encoded.
        hard_negatives: How many of a list's own passages that are not relevant, in its order, are negatives; those
            after them are ignored.

    Returns:
        BOOL [Q, P] positive and BOOL [Q, P] ignored.
    """
    positive = np.zeros((len(lists), len(pool)), dtype=np.bool_)
    ignored = np.zeros_like(positive)
    for query, candidates in enumerate(lists):
        left = hard_negatives
        for passage, relevant in zip(candidates.passages, candidates.relevant, strict=True):
            row = pool.row(passage.encoder_text)
            if row is None:
                continue
            if relevant:
                positive[query, row] = True
            elif left:
                left -= 1
            else:
                ignored[query, row] = True
    return positive, ignored
