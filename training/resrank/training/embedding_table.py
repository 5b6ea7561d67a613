"""Embeddings computed once for many lists: what an index would hold, and what stage 1b trains on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from resrank.core.errors import InvalidInputError
from resrank.core.tokenization import EncoderTokenizer
from resrank.training.batches import Int64, Tokenizers, padded_rows, token_budget_chunks
from resrank.training.lists import CandidateList
from resrank.training.trainable import TrainableResRank
from resrank.training.vector_cache import Side, VectorCache

Progress = Callable[[int, int], None]
"""Called with the number of texts encoded so far and of those of its kind that have to be."""


def encode_texts(
    model: TrainableResRank,
    tokenizer: EncoderTokenizer,
    texts: Sequence[str],
    *,
    dtype: torch.dtype = torch.float32,
    progress: Progress = lambda done, of: None,
) -> Tensor:
    """Encodes texts without gradients and without dropout.

    Args:
        model: Its encoder, as it stands; its training mode is put back afterwards.
        tokenizer: The side of the encoder that the texts belong to.
        texts: What is too long is cut, as when an index is built.
        dtype: Of the result; FP16 is how vectors are stored.
        progress: Called after each pass.

    Returns:
        ``dtype`` [n, d] on the CPU, in the order of ``texts``.

    Raises:
        InvalidInputError: An embedding is not finite (in ``dtype``).
    """
    table = torch.empty(len(texts), model.spec.encoder.embedding_dim, dtype=dtype)
    done = 0
    training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference mode, in which FSDP's gathered weights could not be trained again
            for chunk in token_budget_chunks(tokenizer, texts, model.config.compute.encode_batch_tokens, model.device):
                found = model("encode", chunk.input_ids, chunk.attention_mask).to(dtype).cpu()
                if not torch.isfinite(found).all():
                    row = int(chunk.rows[int((~torch.isfinite(found)).any(dim=1).nonzero()[0])])
                    raise InvalidInputError("encoder", f"gives no finite {dtype} vector for {texts[row][:80]!r}")
                table[chunk.rows] = found
                done += len(chunk.rows)
                progress(done, len(texts))
    finally:
        model.train(training)
    return table


def encode_side(
    model: TrainableResRank,
    tokenizers: Tokenizers,
    side: Side,
    texts: Sequence[str],
    *,
    progress: Progress = lambda done, of: None,
    cache: VectorCache | None = None,
) -> Tensor:
    """Encodes passages as an index stores them, or queries as the server computes them.

    Args:
        model: As for :func:`encode_texts`.
        tokenizers: Of the checkpoint.
        side: Which of the two the texts are.
        texts: What is too long is cut.
        progress: Called after each pass.
        cache: Of the encoder as it stands; None encodes every text.

    Returns:
        [n, d] on the CPU, in the order of ``texts``: FP16 for passages, FP32 for queries.

    Raises:
        InvalidInputError: An embedding is not finite.
    """
    tokenizer, dtype = (
        (tokenizers.passages, torch.float16) if side == "passages" else (tokenizers.queries, torch.float32)
    )

    def encode(some: Sequence[str]) -> Tensor:
        return encode_texts(model, tokenizer, some, dtype=dtype, progress=progress)

    if cache is None:
        return encode(texts)
    return cache.complete(side, texts, model.spec.encoder.embedding_dim, dtype, encode)


@dataclass(frozen=True)
class EmbeddingTable:
    """Embeddings of every distinct text of some lists.

    Attributes:
        passages: FP16 [P, d] on the CPU, as an index stores them.
        queries: FP32 [Q, d] on the CPU, as the server computes them.
    """

    passages: Tensor
    queries: Tensor
    _passage_rows: dict[bytes, int]
    _query_rows: dict[bytes, int]

    @classmethod
    def build(
        cls,
        model: TrainableResRank,
        tokenizers: Tokenizers,
        lists: Iterable[CandidateList],
        *,
        progress: Progress = lambda done, of: None,
        cache: VectorCache | None = None,
    ) -> Self:
        """Encodes every distinct text once; a question that is a vector stands as it is.

        Args:
            model: Its encoder, as it stands.
            tokenizers: Of the checkpoint.
            lists: The lists; repetitions cost nothing.
            progress: Called after each pass.
            cache: Of the model's encoder as it stands.

        Raises:
            InvalidInputError: An embedding is not finite.
        """
        passages: dict[bytes, int] = {}
        queries: dict[bytes, int] = {}
        passage_texts: list[str] = []
        query_texts: list[str] = []
        vectors: dict[bytes, bytes] = {}
        for candidates in lists:
            if candidates.query_vector is None:
                _number(candidates.query, queries, query_texts)
            else:
                vectors[_query_key(candidates)] = candidates.query_vector
            for passage in candidates.passages:
                _number(passage.encoder_text, passages, passage_texts)
        encoded = encode_side(model, tokenizers, "passages", passage_texts, progress=progress, cache=cache)
        asked = encode_side(model, tokenizers, "queries", query_texts, progress=progress, cache=cache)
        queries.update(zip(vectors, range(len(query_texts), len(query_texts) + len(vectors)), strict=True))
        given = np.frombuffer(b"".join(vectors.values()), "<f4").reshape(len(vectors), asked.shape[1])
        return cls(encoded, torch.cat([asked, torch.from_numpy(given.copy())]), passages, queries)

    def passage_rows(self, candidates: CandidateList) -> Int64:
        """INT64 [N], where a list's passages stand in :attr:`passages`.

        Raises:
            KeyError: A passage was not among the lists that the table was built from.
        """
        return np.array([self._passage_rows[_key(p.encoder_text)] for p in candidates.passages], dtype=np.int64)

    def gather(self, lists: Sequence[CandidateList], device: torch.device) -> tuple[Tensor, Tensor]:
        """The embeddings of a batch of lists.

        Args:
            lists: Lists whose texts the table was built from.
            device: Where the tensors go.

        Returns:
            FP16 [B, N', d] candidates, each list's last one repeated, and FP32 [B, d] queries.

        Raises:
            KeyError: A text was not among those lists.
        """
        rows = padded_rows([self.passage_rows(candidates) for candidates in lists])
        queries = torch.tensor([self._query_rows[_query_key(candidates)] for candidates in lists])
        return self.passages[rows].to(device), self.queries[queries].to(device)


def _key(text: str) -> bytes:
    """Sixteen bytes in place of a text: a table of a million passages need not hold them."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _query_key(candidates: CandidateList) -> bytes:
    """Of a question's text, or of the vector that stands for it."""
    vector = candidates.query_vector
    return _key(candidates.query) if vector is None else hashlib.blake2b(vector, digest_size=15).digest()


def _number(text: str, rows: dict[bytes, int], texts: list[str]) -> None:
    if rows.setdefault(_key(text), len(texts)) == len(texts):
        texts.append(text)
