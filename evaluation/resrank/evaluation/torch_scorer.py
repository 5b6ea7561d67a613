"""A checkpoint scored in this process by the torch reference in fp32, on a GPU where there is one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resrank.core.checkpoint import ENCODER_DIR, RERANKER_DIR, CheckpointSpec, Norm
from resrank.core.prompt import pad_candidates
from resrank.core.relations import CanonicalOrder, canonical_order, padded_relations, relations, without_neighbors
from resrank.core.scoring import score
from resrank.core.tokenization import EncoderTokenizer, PromptTokenizer
from resrank.evaluation.scorer import CandidateVectors, Float32
from resrank.model.modeling import ResRankModel

_PASS_POSITIONS = 4096
"""Positions of one pass, padding included, some 30 lists of 100 candidates: bounds the memory, not the speed."""

_EMBED_BATCH = 32


class Part(StrEnum):
    """A part of what the reranker reads, which an ablation leaves out."""

    NEIGHBORS = "neighbors"  # relations between passages: what the list adds
    TEXT = "text"  # the query's: what an LLM adds


class TorchScorer:
    """Implements :class:`~resrank.evaluation.scorer.Scorer` by :class:`resrank.model.modeling.ResRankModel`.

    Backbones run in torch; the last step, fusion and cosine, is the one that serving runs (``resrank.core.scoring``).
    """

    def __init__(self, checkpoint: Path) -> None:
        """Loads a full checkpoint.

        Raises:
            CheckpointError: The folder is not a valid checkpoint.
        """
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = ResRankModel.from_checkpoint(checkpoint).to(self._device)
        encoder = self.spec.encoder
        self._queries = EncoderTokenizer(checkpoint / ENCODER_DIR, encoder, for_queries=True)
        self._passages = EncoderTokenizer(checkpoint / ENCODER_DIR, encoder, for_queries=False)
        self._prompt = PromptTokenizer(checkpoint / RERANKER_DIR, self.spec.reranker)
        self._embedded: dict[str, Float32] = {}
        self._left_out: Part | None = None

    def without(self, part: Part) -> TorchScorer:
        """The same checkpoint, reading less."""
        less = copy.copy(self)
        less._left_out = part
        return less

    @property
    def spec(self) -> CheckpointSpec:
        """The checkpoint's fields."""
        return self._model.spec

    @property
    def max_passages(self) -> int:
        """Candidates that one pass takes."""
        return self.spec.reranker.max_passages

    def embed_queries(self, texts: Sequence[str]) -> Float32:
        """Embeds queries, FP32 [len(texts), d].

        Raises:
            InvalidInputError: One is empty or too long in bytes.
        """
        # Kept, so that a query has one vector whatever it is batched with, in every row of an evaluation.
        if new := [text for text in dict.fromkeys(texts) if text not in self._embedded]:
            self._embedded.update(zip(new, self._embed(self._queries, new), strict=True))
        return np.stack([self._embedded[text] for text in texts])

    def embed_passages(self, texts: Sequence[str]) -> Float32:
        """Embeds passages, FP32 [len(texts), d].

        Raises:
            InvalidInputError: One is empty or too long in bytes.
        """
        return self._embed(self._passages, texts)

    def score(self, lists: Sequence[CandidateVectors]) -> Iterator[Float32]:
        """Scores candidates, see :meth:`resrank.evaluation.scorer.Scorer.score`."""
        if self.spec.fusion.query_residual:
            unknown = [one.query for one in lists if one.embedding is None]
            if unknown:
                self.embed_queries(unknown)  # together, and kept
        orders = [self._order(one) for one in lists]
        blocks = [
            [
                replace(one, embeddings=one.embeddings[order.order[start : start + self.max_passages]])
                for start in range(0, len(one.embeddings), self.max_passages)
            ]
            for one, order in zip(lists, orders, strict=True)
        ]
        scores = self._score_blocks(list(chain.from_iterable(blocks)))
        for parts, order in zip(blocks, orders, strict=True):
            yield np.concatenate([next(scores) for _ in parts])[order.places]

    def _order(self, one: CandidateVectors) -> CanonicalOrder:
        """The order that candidates are read in: with relations the canonical one, over the whole list."""
        if self.spec.reranker.slots.content.has_relations:
            return canonical_order(self._query(one), one.embeddings)
        return CanonicalOrder.as_given(len(one.embeddings))

    def _query(self, one: CandidateVectors) -> Float32:
        return self.embed_queries([one.query])[0] if one.embedding is None else one.embedding

    @torch.no_grad()
    def _embed(self, tokenizer: EncoderTokenizer, texts: Sequence[str]) -> Float32:
        embeddings = np.empty((len(texts), self.spec.encoder.embedding_dim), np.float32)
        by_length = sorted(
            range(len(texts)), key=lambda row: len(texts[row])
        )  # rows of one length pad each other little
        for start in range(0, len(texts), _EMBED_BATCH):
            rows = by_length[start : start + _EMBED_BATCH]
            tokens = tokenizer.encode([texts[row].encode() for row in rows], truncate=True)
            pooled = self._model.encode(self._tensor(tokens.input_ids), self._tensor(tokens.attention_mask))
            embeddings[rows] = pooled.float().cpu().numpy()
        return embeddings

    def _score_blocks(self, blocks: Sequence[CandidateVectors]) -> Iterator[Float32]:
        """Of lists that one pass takes each; several of them go through together."""
        queries = self._prompt.encode([block.query.encode() for block in blocks], truncate=True)
        if self._left_out is Part.TEXT:
            queries = [[] for _ in queries]
        lengths = [
            self._prompt.layout.length(len(query), len(block.embeddings))
            for query, block in zip(queries, blocks, strict=True)
        ]
        start = 0
        while start < len(blocks):
            end = start + 1
            while end < len(blocks) and (end + 1 - start) * max(lengths[start : end + 1]) <= _PASS_POSITIONS:
                end += 1
            yield from self._pass(queries[start:end], blocks[start:end])
            start = end

    @torch.no_grad()
    def _pass(self, queries: Sequence[Sequence[int]], blocks: Sequence[CandidateVectors]) -> list[Float32]:
        counts = [len(block.embeddings) for block in blocks]
        prompt = self._prompt.layout.batch(queries, counts)
        fusion = self.spec.fusion
        query_embeddings = np.stack([self._query(block) for block in blocks]) if fusion.query_residual else None
        vectors = [block.embeddings[None] for block in blocks]
        width = prompt.passage_positions.shape[1]
        candidates = np.concatenate([pad_candidates(row, width) for row in vectors])
        found = self._model.outputs(
            self._tensor(prompt.input_ids),
            self._tensor(prompt.passage_positions),
            self._tensor(prompt.last_position),
            self._tensor(candidates),
            self._relations(blocks, query_embeddings, width),
        )
        states, query_state, residuals = (None if part is None else part.cpu().numpy() for part in found)
        scores = score(
            states,
            query_state,
            candidates,
            query_embeddings,
            gate=fusion.residual_gate,
            normalize_states=fusion.state_norm is Norm.L2,
            cosine_map=fusion.cosine_map,
            residuals=residuals,
            residual_weight=fusion.score_residual,
        )
        return [row[:count] for row, count in zip(scores, counts, strict=True)]

    def _relations(
        self, blocks: Sequence[CandidateVectors], query_embeddings: Float32 | None, width: int
    ) -> torch.Tensor | None:
        neighbors = self.spec.reranker.slots.neighbors
        if neighbors is None or query_embeddings is None:
            return None
        cosine_map = self.spec.fusion.cosine_map
        rows = [
            relations(query, block.embeddings, neighbors=neighbors, cosine_map=cosine_map)
            for query, block in zip(query_embeddings, blocks, strict=True)
        ]
        if self._left_out is Part.NEIGHBORS:
            rows = [without_neighbors(row, neighbors) for row in rows]
        return self._tensor(padded_relations(rows, width))

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)
