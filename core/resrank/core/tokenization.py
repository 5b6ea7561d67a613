"""Text to token ids with the rules that serving needs: limits first, special tokens in user text as plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from resrank.core.checkpoint import EncoderSpec, RerankerSpec
from resrank.core.errors import CheckpointError, InvalidInputError, Place
from resrank.core.json_lines import parse_json
from resrank.core.limits import MAX_PASSAGE_BYTES, MAX_QUERY_BYTES
from resrank.core.names import Tensor
from resrank.core.prompt import PromptLayout
from resrank.core.truncation import Truncation

Int64 = NDArray[np.int64]

_MARKUP = re.compile(r"<.+>|\[.+\]", re.DOTALL)


@dataclass(frozen=True)
class TokenBatch:
    """Rows for the encoder.

    Attributes:
        input_ids: INT64 [B, L], right-padded with 0.
        attention_mask: INT64 [B, L], 1 on tokens.
        tokens_cut: INT32 [B], tokens of each text that are not among them.
    """

    input_ids: Int64
    attention_mask: Int64
    tokens_cut: NDArray[np.int32]


def load_tokenizer(folder: Path) -> Tokenizer:
    """Reads ``tokenizer.json`` without the truncation and padding that it may carry.

    Control tokens that the file does not call special (Qwen3's ``<think>``, ``<tool_call>``, ``<|fim_prefix|>``) count
    as special afterwards, so that ``encode_special_tokens`` makes plain text of them too. They are told by their form
    and by standing outside the model's own vocabulary: added words, white space and HTML tags stay as they are.

    Raises:
        CheckpointError: The file is missing or not a tokenizer.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path}: not a readable tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    tokenizer.add_special_tokens(
        [
            AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=True,
            )
            for token in tokenizer.get_added_tokens_decoder().values()
            if not token.special and _MARKUP.fullmatch(token.content) and token.content not in vocabulary
        ]
    )
    return tokenizer


def decode_text(raw: bytes, field: Place, *, max_bytes: int) -> str:
    """Turns a BYTES element into text, or says what is wrong with it.

    Args:
        raw: The element as it came.
        field: Name for the error.
        max_bytes: Longest accepted, checked before anything else is allocated.

    Raises:
        InvalidInputError: Too long, not UTF-8, or empty.
    """
    if len(raw) > max_bytes:
        raise InvalidInputError(field, "too many bytes", limit=max_bytes, value=len(raw))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(field, f"not valid UTF-8 at byte {error.start}") from None
    if not text.strip():
        raise InvalidInputError(field, "empty or only whitespace")
    return text


def pad_tokens(rows: Sequence[Sequence[int]], tokens_cut: Sequence[int] | None = None) -> TokenBatch:
    """Pads rows of token ids on the right to the longest.

    Args:
        rows: Token ids, unequal lengths allowed.
        tokens_cut: How many of each row's text are not there; None for none.
    """
    input_ids = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    mask = np.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    cut = np.zeros(len(rows), np.int32) if tokens_cut is None else np.array(tokens_cut, np.int32)
    return TokenBatch(input_ids, mask, cut)


def row_field(tensor: Tensor, row: int, rows: int) -> Place:
    """What errors call one row of a tensor: ``QUERY``, or ``QUERY[3]`` where there are several.

    Args:
        tensor: The input.
        row: Which row.
        rows: How many there are.
    """
    return Place(tensor) if rows == 1 else Place(tensor, (row,))


class EncoderTokenizer:
    """Passages or queries as the encoder reads them: instruction, text, special tokens, EOS where wanted."""

    def __init__(self, folder: Path, spec: EncoderSpec, *, for_queries: bool) -> None:
        """Prepares one side of the encoder.

        Args:
            folder: Holds ``tokenizer.json``.
            spec: Limits, instructions and ``append_eos``.
            for_queries: Whether the query's instruction and limits apply, else the passage's.

        Raises:
            CheckpointError: The tokenizer cannot be read.
        """
        self._tokenizer = load_tokenizer(folder)
        self._for_queries = for_queries
        self._max_tokens = spec.max_query_tokens if for_queries else spec.max_passage_tokens
        self._max_bytes = MAX_QUERY_BYTES if for_queries else MAX_PASSAGE_BYTES
        # Errors call a query QUERY: that is the tensor's name where most callers meet them, in `rerank`.
        self._tensor = Tensor.QUERY if for_queries else Tensor.TEXT
        # Joined to the text before tokenization, as the backbone was trained: token boundaries may span the seam.
        self._instruction = spec.query_instruction if for_queries else spec.passage_instruction
        self._head, self._tail = _special_frame(self._tokenizer)
        if spec.append_eos:
            eos = _eos_id(folder, self._tokenizer)
            if not self._tail or self._tail[-1] != eos:
                self._tail = [*self._tail, eos]
        self._tokenizer.encode_special_tokens = True
        self._room = self._max_tokens - len(self._head) - len(self._tail)
        self._instruction_tokens = len(self._tokenizer.encode(self._instruction, add_special_tokens=False).ids)
        if self._room <= self._instruction_tokens:
            raise CheckpointError(f"{folder}: {self._max_tokens} tokens leave no room beside the instruction")

    def encode(self, texts: Sequence[bytes], *, truncate: bool | Truncation | None = False) -> TokenBatch:
        """Tokenizes one batch.

        Args:
            texts: UTF-8, one element per row.
            truncate: Cut what is longer than the maximum instead of refusing it; an instruction stays.

        Raises:
            InvalidInputError: A text is empty, too long or not UTF-8; the field names its row. Or the caller's own
                limit leaves no room beside the instruction.
        """
        truncation = Truncation.of(truncate)
        room = self._room_within(truncation)
        names = [row_field(self._tensor, row, len(texts)) for row in range(len(texts))]
        decoded = [decode_text(raw, name, max_bytes=self._max_bytes) for raw, name in zip(texts, names, strict=True)]
        encodings = self._tokenizer.encode_batch_fast(
            [self._instruction + text for text in decoded], add_special_tokens=False
        )
        rows: list[list[int]] = []
        tokens_cut: list[int] = []
        for name, encoding in zip(names, encodings, strict=True):
            ids = encoding.ids
            tokens_cut.append(max(0, len(ids) - room))
            if len(ids) > room:
                if truncation is None:
                    found = len(ids) + self._max_tokens - self._room
                    raise InvalidInputError(name, "too many tokens", limit=self._max_tokens, value=found)
                ids = truncation.cut(ids, room, self._instruction_tokens)
            rows.append([*self._head, *ids, *self._tail])
        return pad_tokens(rows, tokens_cut)

    def _room_within(self, truncation: Truncation | None) -> int:
        """Tokens of text and instruction that are read."""
        if truncation is None or truncation.token_limit is None or self._for_queries:
            return self._room
        around = len(self._head) + len(self._tail)
        room = min(self._room, truncation.token_limit - around)
        if room <= self._instruction_tokens:
            least = around + self._instruction_tokens + 1
            raise InvalidInputError("token_limit", "too small", limit=least, value=truncation.token_limit)
        return room


class PromptTokenizer:
    """Queries as the reranker reads them, and the fixed ids around them.

    Attributes:
        layout: Where all of it stands in the sequence.
    """

    def __init__(self, folder: Path, spec: RerankerSpec) -> None:
        """Tokenizes the prompt's fixed parts once.

        Args:
            folder: Holds ``tokenizer.json``; not read for a reranker without a prompt.
            spec: The reranker's fields.

        Raises:
            CheckpointError: The tokenizer cannot be read, or does not know ``eos_token``.
        """
        self._max_tokens = spec.max_query_tokens
        if spec.prompt is None or spec.eos_token is None:
            self.layout, self._tokenizer = PromptLayout.of_slots_alone(), None
            return
        tokenizer = load_tokenizer(folder)
        eos_id = tokenizer.token_to_id(spec.eos_token)
        if eos_id is None:
            raise CheckpointError(f"{folder}: the tokenizer does not know reranker.eos_token {spec.eos_token!r}")

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids) if text else ()

        prompt = spec.prompt
        head, _ = _special_frame(tokenizer)  # a family that opens with BOS keeps it
        before_query = ids(prompt.before_query)
        if head and before_query[: len(head)] != tuple(head):
            before_query = (*head, *before_query)
        self.layout = PromptLayout(
            before_query=before_query,
            before_passages=ids(prompt.before_passages),
            after_passages=ids(prompt.after_passages),
            eos_id=eos_id,
            placeholder_id=eos_id,
        )
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    def encode(self, queries: Sequence[bytes], *, truncate: bool | Truncation | None = False) -> list[list[int]]:
        """Token ids of each query; none of a reranker without a prompt, whose queries are text all the same.

        Args:
            queries: UTF-8, one element per row.
            truncate: Cut what is longer than the maximum instead of refusing it.

        Raises:
            InvalidInputError: A query is empty, too long or not UTF-8.
        """
        truncation = Truncation.of(truncate)
        rows: list[list[int]] = []
        for row, raw in enumerate(queries):
            name = row_field(Tensor.QUERY, row, len(queries))
            text = decode_text(raw, name, max_bytes=MAX_QUERY_BYTES)
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids if self._tokenizer is not None else []
            if len(ids) > self._max_tokens:
                if truncation is None:
                    raise InvalidInputError(name, "too many tokens", limit=self._max_tokens, value=len(ids))
                ids = truncation.cut(ids, self._max_tokens)
            rows.append(ids)
        return rows


def _special_frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer's own template puts before and after a text, read off an encoded probe."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    plain = [index for index, special in enumerate(encoding.special_tokens_mask) if not special]
    if not plain:
        return encoding.ids, []
    return encoding.ids[: plain[0]], encoding.ids[plain[-1] + 1 :]


def _eos_id(folder: Path, tokenizer: Tokenizer) -> int:
    path = folder / "tokenizer_config.json"
    try:
        eos = parse_json(path.read_text(encoding="utf-8")).get("eos_token")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: needed for encoder.append_eos: {error}") from error
    token = eos["content"] if isinstance(eos, dict) else eos
    eos_id = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if eos_id is None:
        raise CheckpointError(f"{path}: eos_token {token!r} is not in the vocabulary, but encoder.append_eos is on")
    return int(eos_id)
