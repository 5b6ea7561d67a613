"""``rerank_prompt``: the query's text and the candidates to the sequence that the reranker reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resrank.core.buckets import bucket_length, sequence_bucket
from resrank.core.checkpoint import read_spec
from resrank.core.errors import InvalidInputError
from resrank.core.names import Parameter, Tensor
from resrank.core.prompt import pad_candidates
from resrank.core.relations import ordered_relations
from resrank.core.tokenization import PromptTokenizer, row_field
from resrank.core.truncation import Truncation
from resrank.serving.bucket_parameters import read_buckets
from resrank.serving.candidates import validate_candidates, validate_query_embeddings
from resrank.serving.kept_memory import keep_freed_memory
from resrank.serving.small_products import keep_on_one_thread
from resrank.serving.step import Answer, Arrays, StepRequest, run_each


class PromptingStep:
    """QUERY BYTES [B, 1] and CANDIDATES FP16 [B, N, d] to the inputs of ``reranker``, after checking both.

    The candidates' count goes to scoring. With relations QUERY_EMBEDDING FP32 [B, d] comes in: it decides the order in
    which candidates go on, and which place's score belongs to whom. Whatever process it is in computes NumPy's matrix
    products on one thread from then on, and keeps the memory that it frees.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, str] | None = None) -> None:
        """Reads the tokenizer and the limits.

        Args:
            folder: Holds ``resrank.json`` and the reranker's ``tokenizer.json``.
            parameters: Of the model's config: with ``sequence_buckets`` and ``candidate_buckets``, S and N' are among
                them, and the longest bound a request where the checkpoint's own limits do not.

        Raises:
            CheckpointError: One of the files is missing or wrong.
            InvalidInputError: The buckets are no ascending lengths.
        """
        spec = read_spec(folder)
        keep_on_one_thread()
        keep_freed_memory()
        self._neighbors = spec.reranker.slots.neighbors
        self._cosine_map = spec.fusion.cosine_map
        self._reads_state = spec.fusion.has_vector_residual
        self._dim = spec.encoder.embedding_dim
        self._tokenizer = PromptTokenizer(folder, spec.reranker)
        self._sequence_buckets = read_buckets(parameters, Parameter.SEQUENCE_BUCKETS)
        self._candidate_buckets = read_buckets(parameters, Parameter.CANDIDATE_BUCKETS)
        self._max_passages = spec.reranker.max_passages
        if self._candidate_buckets:
            self._max_passages = min(self._max_passages, self._candidate_buckets[-1])

    @property
    def most_candidates(self) -> int:
        """Candidates of one query that find room beside its first token."""
        if not self._sequence_buckets:
            return self._max_passages
        return min(self._max_passages, self._sequence_buckets[-1] - self._tokenizer.layout.length(1, 0))

    def run(self, requests: Sequence[StepRequest]) -> list[Answer]:
        """Lays out each request by itself (see the protocol)."""
        return run_each(self._lay_out, requests)

    def _lay_out(self, request: StepRequest) -> Arrays:
        candidates = request.inputs[Tensor.CANDIDATES]
        validate_candidates(candidates, max_passages=self._max_passages, dim=self._dim)
        queries = self._tokenizer.encode(request.inputs[Tensor.QUERY][:, 0].tolist(), truncate=request.truncate)
        rows, count, _ = candidates.shape
        relational: Arrays = {}
        if self._neighbors is not None:
            embeddings = request.inputs[Tensor.QUERY_EMBEDDING]
            validate_query_embeddings(embeddings)
            candidates, relational = self._relate(embeddings, candidates)
        length = candidate_width = 1
        if self._candidate_buckets:
            candidate_width = bucket_length(candidates.shape[1], self._candidate_buckets)
            candidates = pad_candidates(candidates, candidate_width)
            if relational:
                relational = {
                    **relational,
                    Tensor.RELATIONS: pad_candidates(relational[Tensor.RELATIONS], candidate_width),
                }
        if self._sequence_buckets:
            queries = self._fit(queries, count, truncate=request.truncate)
            longest = self._tokenizer.layout.length(max(map(len, queries)), count)
            length = sequence_bucket(longest, candidate_width, self._sequence_buckets)
        prompt = self._tokenizer.layout.batch(
            queries, [count] * rows, min_length=length, min_candidates=candidate_width
        )
        return {
            Tensor.INPUT_IDS: prompt.input_ids,
            Tensor.PASSAGE_POSITIONS: prompt.passage_positions,
            **({Tensor.LAST_POSITION: prompt.last_position} if self._reads_state else {}),
            Tensor.CANDIDATES: candidates,
            Tensor.CANDIDATE_COUNT: prompt.candidate_count,
            **relational,
            **self._counted(request, queries),
        }

    @staticmethod
    def _counted(request: StepRequest, queries: Sequence[Sequence[int]]) -> Arrays:
        """TOKENS_READ INT32 [B, 1], to who asks by name."""
        if Tensor.TOKENS_READ not in request.wanted:
            return {}
        return {Tensor.TOKENS_READ: np.array([[len(query)] for query in queries], np.int32)}

    def _relate(
        self, queries: NDArray[np.float32], candidates: NDArray[np.float16]
    ) -> tuple[NDArray[np.float16], Arrays]:
        """Candidates in canonical order, FP16 [B, N, d], with RELATIONS and CANDIDATE_PLACES."""
        neighbors = self._neighbors or 0
        related = [
            ordered_relations(query, row, neighbors=neighbors, cosine_map=self._cosine_map)
            for query, row in zip(queries, candidates, strict=True)
        ]
        return np.stack([row[order.order] for row, (order, _) in zip(candidates, related, strict=True)]), {
            Tensor.RELATIONS: np.stack([features for _, features in related]),
            Tensor.CANDIDATE_PLACES: np.stack([order.places for order, _ in related]),
        }

    def _fit(self, queries: list[list[int]], count: int, *, truncate: bool | Truncation | None) -> list[list[int]]:
        """Cuts or refuses queries that, beside so many candidates, would outgrow the longest sequence."""
        room = self._sequence_buckets[-1] - self._tokenizer.layout.length(0, count)
        for row, query in enumerate(queries):
            if len(query) > room and not (truncate and room > 0):
                field = row_field(Tensor.QUERY, row, len(queries))
                raise InvalidInputError(
                    field, f"too many tokens beside {count} candidates", limit=max(room, 0), value=len(query)
                )
        truncation = Truncation.of(truncate) or Truncation()
        return [truncation.cut(query, room) for query in queries]
