"""``rerank_prompt``: the query's text and the candidates to the sequence that the reranker reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resrank.checkpoint import read_spec
from resrank.names import Tensor
from resrank.serving.candidates import validate_candidates
from resrank.serving.step import Arrays, Outcome, StepRequest, run_each
from resrank.tokenization import PromptTokenizer


class PromptingStep:
    """QUERY BYTES [B, 1] and CANDIDATES FP16 [B, N, d] to the inputs of ``reranker``, after checking both.

    What only a later step needs (the candidates' count and, with ``query_residual``, the query's embedding) is passed
    on, so that the ensemble is a chain.
    """

    def __init__(self, folder: Path) -> None:
        """Reads the tokenizer and the limits.

        Args:
            folder: Holds ``resrank.json`` and the reranker's ``tokenizer.json``.

        Raises:
            CheckpointError: One of the files is missing or wrong.
        """
        spec = read_spec(folder)
        self._max_passages = spec.reranker.max_passages
        self._dim = spec.encoder.embedding_dim
        self._tokenizer = PromptTokenizer(folder, spec.reranker)

    def run(self, requests: Sequence[StepRequest]) -> list[Outcome]:
        """Lays out each request by itself (see the protocol)."""
        return run_each(self._lay_out, requests)

    def _lay_out(self, request: StepRequest) -> Arrays:
        candidates = request.inputs[Tensor.CANDIDATES]
        validate_candidates(candidates, max_passages=self._max_passages, dim=self._dim)
        queries = self._tokenizer.encode(request.inputs[Tensor.QUERY][:, 0].tolist(), truncate=request.truncate)
        rows, count, _ = candidates.shape
        prompt = self._tokenizer.layout.batch(queries, [count] * rows)
        outputs = {
            Tensor.INPUT_IDS: prompt.input_ids,
            Tensor.PASSAGE_POSITIONS: prompt.passage_positions,
            Tensor.LAST_POSITION: prompt.last_position,
            Tensor.CANDIDATES: candidates,
            Tensor.CANDIDATE_COUNT: prompt.candidate_count,
        }
        if Tensor.QUERY_EMBEDDING in request.inputs:
            outputs[Tensor.QUERY_EMBEDDING] = request.inputs[Tensor.QUERY_EMBEDDING]
        return outputs
